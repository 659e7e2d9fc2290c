"""Pace: when the next push may start, for what failed, for refused paths and for the limits of the Hub. The lanes and
the loop of the uploader ask it.
"""
