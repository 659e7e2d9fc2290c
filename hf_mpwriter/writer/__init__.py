"""The writers that users construct: the interfaces of tensorboardX, torch and huggingface_hub on event files of ours.

Training programs and `integrations/` call it; it hands what is logged to the `Worker` of the process.
"""
