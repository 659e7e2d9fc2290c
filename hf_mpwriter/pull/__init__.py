"""Pulls: what a command carries out to bring a run back from the Hub, once or for as long as the run goes on."""
