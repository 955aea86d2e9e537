"""Stage `rejection`: a dataset of the samples that are right and readable.

    run: problems -> engine -> rewards -> candidates (on disk, batch by batch) -> filters -> select -> dataset
         optional, before the dataset: rewrite (a model behind an endpoint) -> verify (rewards and filters again)

Candidates hold every sample with every reward, so that filters can change without sampling again. Nothing here trains.
"""
