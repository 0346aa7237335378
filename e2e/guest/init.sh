#!/bin/busybox sh
# First process of the Linux guest: drivers, the data partition on /data, a shell on the serial port.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ ENV=/etc/profile
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
hostname demo
while read -r module; do insmod "/modules/$module"; done </modules/order
# Disks appear when their bus has been probed, not when the driver is loaded.
tries=50
until data=$(findfs LABEL=data 2>/dev/null) || [ $((tries -= 1)) -eq 0 ]; do usleep 100000; done
[ -z "$data" ] || mount -t ext4 "$data" /data || echo "demo: the data partition $data cannot be mounted"
acpid -c /etc/acpi -l /dev/null -p /tmp/acpid.pid
echo
echo "Backstay demo guest: Linux $(uname -r), $(grep -c ^processor /proc/cpuinfo) processor(s), data on /data"
while :; do setsid cttyhack sh; done
