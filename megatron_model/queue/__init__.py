"""Runs that wait for their turn, and the keeper that trains one after the other.

For programs: ``queue = Queue(runs_dir)``, ``queue.add(config, tags=("sweep",))`` as often as there
are runs, then ``start_keeper(queue)``.
"""

from megatron_model.queue.entry import QueueEntry as QueueEntry
from megatron_model.queue.folder import Queue as Queue
from megatron_model.queue.start import start_keeper as start_keeper
