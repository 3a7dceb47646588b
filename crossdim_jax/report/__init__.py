"""The paper's tables and figures, and one offline HTML page per run."""
