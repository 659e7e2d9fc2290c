"""The process that decides what goes to the Hub and when. Workers start it by `system.launch`; it starts pushes."""
