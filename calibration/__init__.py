"""Everything learned from images: datasets, training, enrolment, thresholds, evaluation."""
