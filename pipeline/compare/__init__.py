"""Methods side by side: what the trainings of the arena came to, in tables, pictures and one page."""
