"""The paper's experiment (section 4): its protocol, its runs, and the report of what they gave."""
