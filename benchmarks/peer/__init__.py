"""The predecessor's way of serving, rebuilt with what it was built of. Runs in a virtual environment of its own."""
