"""CAMUS: the heart in ultrasound."""
