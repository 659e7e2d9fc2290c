"""The health of an uploader, in numbers for a monitoring system."""
