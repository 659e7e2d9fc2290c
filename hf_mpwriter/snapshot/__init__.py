"""What there is to send: event files at whole-record lengths, and attachments by content.

Uploader and mirror take snapshots; workers, the command line and the oracle compare them with the ledger.
"""
