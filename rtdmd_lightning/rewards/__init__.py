"""Rewards: how good is an image for its prompt?"""
