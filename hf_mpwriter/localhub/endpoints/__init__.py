"""The endpoints of the Hub by subject, from the raw path of a request to its response.

`server.serving` runs the application that `app` builds; handlers change repositories through `storage`.
"""
