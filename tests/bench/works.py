"""All works, in the order in which they are done."""

import backups
import files
import models
import scale
import seals
import trees

WORKS = [*files.WORKS, *models.WORKS, *seals.WORKS, *trees.WORKS, *scale.WORKS, *backups.WORKS]
