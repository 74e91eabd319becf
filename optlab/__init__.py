"""optlab: the JAX home of the optimizers that come after Adam."""

from optlab import diagnostics as diagnostics
from optlab import directions as directions
from optlab import registry as registry
from optlab import sharding as sharding
from optlab.compose import by_role as by_role
from optlab.compose import current_learning_rate as current_learning_rate
from optlab.describe import describe as describe
from optlab.gradients import conflict as conflict
from optlab.gradients.curvature import hvp as hvp
from optlab.gradients.curvature import is_hessian_step as is_hessian_step
from optlab.gradients.curvature import rademacher_like as rademacher_like
from optlab.gradients.curvature import (
    value_grad_and_hessian_diag as value_grad_and_hessian_diag,
)
from optlab.gradients.curvature import (
    value_grad_and_periodic_hessian_diag as value_grad_and_periodic_hessian_diag,
)
from optlab.gradients.steps import normalized_newton_step as normalized_newton_step
from optlab.gradients.steps import target_step as target_step
from optlab.gradients.zeroth import blocks_in_turn as blocks_in_turn
from optlab.gradients.zeroth import forward_value_and_grad as forward_value_and_grad
from optlab.gradients.zeroth import keep_if_better as keep_if_better
from optlab.gradients.zeroth import zo_value_and_grad as zo_value_and_grad
from optlab.inject import inject_hyperparams as inject_hyperparams
from optlab.laws import step_law as step_law
from optlab.matrices.coefficients.presets import fit_coefficients as fit_coefficients
from optlab.matrices.orthogonalize import orthogonalize as orthogonalize
from optlab.optimizers.adahessian import adahessian as adahessian
from optlab.optimizers.adahessian import scale_by_adahessian as scale_by_adahessian
from optlab.optimizers.cosmos import cosmos as cosmos
from optlab.optimizers.cosmos import scale_by_cosmos as scale_by_cosmos
from optlab.optimizers.hyperballs import adam_h as adam_h
from optlab.optimizers.hyperballs import cosmos_h as cosmos_h
from optlab.optimizers.hyperballs import muon_h as muon_h
from optlab.optimizers.hyperballs import soap_h as soap_h
from optlab.optimizers.lanton import lanton as lanton
from optlab.optimizers.lanton import scale_by_lanton as scale_by_lanton
from optlab.optimizers.lion import lion as lion
from optlab.optimizers.lion import scale_by_lion as scale_by_lion
from optlab.optimizers.lmo import scale_by_lmo as scale_by_lmo
from optlab.optimizers.muon import muon as muon
from optlab.optimizers.muon import scale_by_muon as scale_by_muon
from optlab.optimizers.normuon import normuon as normuon
from optlab.optimizers.normuon import scale_by_normuon as scale_by_normuon
from optlab.optimizers.root import root as root
from optlab.optimizers.root import scale_by_root as scale_by_root
from optlab.optimizers.scion import scale_by_scion as scale_by_scion
from optlab.optimizers.scion import scion as scion
from optlab.optimizers.soap import scale_by_soap as scale_by_soap
from optlab.optimizers.soap import soap as soap
from optlab.optimizers.spam import scale_by_spam as scale_by_spam
from optlab.optimizers.spam import spam as spam
from optlab.optimizers.stable_spam import scale_by_stable_spam as scale_by_stable_spam
from optlab.optimizers.stable_spam import stable_spam as stable_spam
from optlab.registry import register as register
from optlab.roles import EMBEDDING as EMBEDDING
from optlab.roles import VECTOR as VECTOR
from optlab.roles import Embedding as Embedding
from optlab.roles import Matrix as Matrix
from optlab.roles import default_roles as default_roles
from optlab.schedules import linear_decay_schedule as linear_decay_schedule
from optlab.schedules import refined_schedule as refined_schedule
from optlab.schedules import uba_schedule as uba_schedule
from optlab.wrappers.cautious import cautious as cautious
from optlab.wrappers.hyperball import hyperball as hyperball
from optlab.wrappers.neurons import normalize_neurons as normalize_neurons
from optlab.wrappers.noise import noise_adaptive as noise_adaptive
from optlab.wrappers.outliers import clip_outliers as clip_outliers
from optlab.wrappers.skip import skip_spikes as skip_spikes
from optlab.wrappers.skip import skipped_steps as skipped_steps
from optlab.wrappers.small_state import small_state as small_state
from optlab.wrappers.small_state import split_weights as split_weights
from optlab.wrappers.spikes import clip_spikes as clip_spikes
from optlab.wrappers.spikes import reset_every as reset_every

__version__ = "0.1.0"
