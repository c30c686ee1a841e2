#!/bin/busybox sh
# First process of a guest: the disk's driver, then a shell on the second serial line, driven by `cargo xtask vm`.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /run /tmp
modprobe virtio_pci 2>/dev/null
modprobe virtio_blk
export STP_VOLUME=/dev/vda STP_RUN_DIR=/run/stp
# One reader for all commands: a shell that is given up (the other end went away) ends the guest.
stty -F /dev/ttyS1 raw -echo
sh </dev/ttyS1 >/dev/ttyS1 2>&1
poweroff -f
