"""Networks: an encoder of observations, a stack of memory blocks, and heads for actions and values."""

from memax_rl.networks.actions import ActionDistribution as ActionDistribution
from memax_rl.networks.actions import action_outputs as action_outputs
from memax_rl.networks.actions import check_action_space as check_action_space
from memax_rl.networks.actions import from_environment as from_environment
from memax_rl.networks.actions import to_environment as to_environment
from memax_rl.networks.actor_critic import ActorCritic as ActorCritic
from memax_rl.networks.actor_critic import Outputs as Outputs
from memax_rl.networks.actor_critic import make_actor_critic as make_actor_critic
from memax_rl.networks.q_network import QNetwork as QNetwork
from memax_rl.networks.q_network import QValues as QValues
from memax_rl.networks.q_network import check_discrete as check_discrete
from memax_rl.networks.q_network import make_q_network as make_q_network
from memax_rl.networks.torso import Block as Block
from memax_rl.networks.torso import NetworkConfig as NetworkConfig
from memax_rl.networks.torso import Torso as Torso
from memax_rl.networks.torso import make_torso as make_torso
