"""Policies that steer a frozen policy, and what they are made of."""
