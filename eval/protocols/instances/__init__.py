"""Personalised models: does a model know an instance, can it compose it, and did the class survive?"""
