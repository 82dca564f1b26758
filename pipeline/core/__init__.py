"""What every stage and command uses: paths and writers, the console, and how a run ends in a line."""
