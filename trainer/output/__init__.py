"""What a run writes for people: metrics, figures, captions."""
