"""Which leaf is a hidden matrix, an embedding or a vector, and how a matrix is seen.

A rule `rule(path, leaf)` returns the role of a leaf: `Matrix(rows, cols, spatial)`,
`Embedding(vocabulary_axis)` or `VECTOR`. It asks the path and the shape and nothing
else, so it gives the same answer under `optax.partition` and `optax.masked`. Axes of a
matrix that are neither rows nor columns are stack axes (scanned layers, experts): each
slice is a separate matrix, in its state too. The role says all that a method needs;
nothing else reads the names of leaves.
"""

from optlab.roles.default import DefaultRoles as DefaultRoles
from optlab.roles.default import Layout as Layout
from optlab.roles.default import default_roles as default_roles
from optlab.roles.kinds import EMBEDDING as EMBEDDING
from optlab.roles.kinds import VECTOR as VECTOR
from optlab.roles.kinds import Embedding as Embedding
from optlab.roles.kinds import Matrix as Matrix
from optlab.roles.kinds import Role as Role
from optlab.roles.kinds import Rule as Rule
from optlab.roles.kinds import Vector as Vector
from optlab.roles.kinds import View as View
from optlab.roles.kinds import group as group
from optlab.roles.names import leaf_name as leaf_name
from optlab.roles.trees import as_rule as as_rule
from optlab.roles.trees import doubts as doubts
from optlab.roles.trees import tree_groups as tree_groups
from optlab.roles.trees import tree_roles as tree_roles
from optlab.roles.trees import tree_views as tree_views
