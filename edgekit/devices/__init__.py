"""Devices that run bundles: Linux machines such as a Raspberry Pi over ssh, Android phones over adb."""

from edgekit.devices.connection import Connection, open_connection
from edgekit.devices.target import LOCAL, Target

__all__ = ["LOCAL", "Connection", "Target", "open_connection"]
