"""Any data set: what its folder says of itself, its cases, and scores that hold for any labels."""
