"""`lrk-train --recipe auto`: what to run, chosen from the results of the studies.

`evidence` reads these results, `rules` makes choices of them, `ladder` makes a step fit a card by
plans, and `recipe` puts all of it together for one model, its data and one card. `command` is what
`lrk-train` runs, `page` writes docs/recipes.md.
"""

from lrk.train.auto_recipe.choices import Choice
from lrk.train.auto_recipe.evidence import Evidence, read_evidence
from lrk.train.auto_recipe.recipe import Recipe, make_recipe

__all__ = ["Choice", "Evidence", "Recipe", "make_recipe", "read_evidence"]
