"""Studies: many runs that differ in one thing, planned before and compared in pairs after."""
