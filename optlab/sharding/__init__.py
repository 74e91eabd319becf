"""Meshes, layouts of parameters and state, and the ways to spread matrix work."""

from optlab.sharding.distribution import OverAxis as OverAxis
from optlab.sharding.distribution import OverMesh as OverMesh
from optlab.sharding.distribution import over_axis as over_axis
from optlab.sharding.distribution import over_mesh as over_mesh
from optlab.sharding.layouts import Rules as Rules
from optlab.sharding.layouts import fsdp_rules as fsdp_rules
from optlab.sharding.layouts import init_state as init_state
from optlab.sharding.layouts import make_mesh as make_mesh
from optlab.sharding.layouts import offloaded as offloaded
from optlab.sharding.layouts import param_specs as param_specs
from optlab.sharding.layouts import state_shardings as state_shardings
from optlab.sharding.layouts import state_specs as state_specs
from optlab.sharding.layouts import tensor_parallel_rules as tensor_parallel_rules
from optlab.sharding.layouts import to_shardings as to_shardings
from optlab.state import restack as restack
