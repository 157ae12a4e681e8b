"""Progressive distillation: the student's target, one halving, the whole ladder."""
