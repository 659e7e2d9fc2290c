"""What the scripts of bench/, proof/ and frameworks/ share; nothing here can be run."""
