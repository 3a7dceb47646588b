"""Cases and images: where they lie in the patient, how they are read, written and prepared."""
