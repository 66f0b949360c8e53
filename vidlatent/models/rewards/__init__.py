"""Reward networks: judges of videos whose weights are published or fine-tuned here.

They are pretrained networks like any other (``models.pretrained.NETWORKS``); ``vidlatent.rewards``
makes rewards of them.
"""
