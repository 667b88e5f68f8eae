"""Run training jobs: in a process beside the server, or on any worker of a Redis queue.

A runner starts attempts and reports what it can observe of them. The attempt itself writes its result into the job's
file (see `job_store`); `TrainScheduler` combines the two.
"""
