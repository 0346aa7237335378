#!/bin/busybox sh
umount /data
sync
poweroff -f
