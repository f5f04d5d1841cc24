"""Devices that run bundles: Linux machines such as a Raspberry Pi over ssh, Android phones over adb."""

from edgekit.devices.connection import LOCAL, Connection, Target, open_connection

__all__ = ["LOCAL", "Connection", "Target", "open_connection"]
