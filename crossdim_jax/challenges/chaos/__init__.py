"""CHAOS: abdominal organs in CT and MR."""
