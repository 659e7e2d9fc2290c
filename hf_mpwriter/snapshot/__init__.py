"""What there is to send: event files at whole-record lengths, and attachments by content.

The uploader takes snapshots; workers, the command line and the oracle compare them with the ledger.
"""
