"""Files as bytes: read within limits, written whole or not at all."""
