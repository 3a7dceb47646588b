"""Tables and figures as in the paper, and one offline HTML page per run."""
