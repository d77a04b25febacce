"""What can happen in a run, its log, and the state that is folded from it.

Every kind of event is offered here, for programs that use the library.
"""

from megatron_model.events.schema import Alert as Alert
from megatron_model.events.schema import AnyRecorded as AnyRecorded
from megatron_model.events.schema import CheckpointSaved as CheckpointSaved
from megatron_model.events.schema import CorpusProgress as CorpusProgress
from megatron_model.events.schema import DeviceSampled as DeviceSampled
from megatron_model.events.schema import Evaluated as Evaluated
from megatron_model.events.schema import Event as Event
from megatron_model.events.schema import MetricsReported as MetricsReported
from megatron_model.events.schema import Notice as Notice
from megatron_model.events.schema import PhaseChanged as PhaseChanged
from megatron_model.events.schema import RankMeasured as RankMeasured
from megatron_model.events.schema import RanksMeasured as RanksMeasured
from megatron_model.events.schema import RunFailed as RunFailed
from megatron_model.events.schema import RunFinished as RunFinished
from megatron_model.events.schema import RunHandedOver as RunHandedOver
from megatron_model.events.schema import RunPaused as RunPaused
from megatron_model.events.schema import RunResumed as RunResumed
from megatron_model.events.schema import RunStarted as RunStarted
from megatron_model.events.schema import SampleGenerated as SampleGenerated
from megatron_model.events.schema import SettingChanged as SettingChanged
from megatron_model.events.schema import StepCompleted as StepCompleted
from megatron_model.events.schema import WeightsTakenOver as WeightsTakenOver
from megatron_model.events.schema import WorkProgress as WorkProgress
from megatron_model.events.schema import decode_event as decode_event
from megatron_model.events.schema import encode_event as encode_event
