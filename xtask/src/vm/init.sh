#!/bin/busybox sh
# First process of a guest: the volume's driver, if it needs one, then a shell on a virtual port, driven by `cargo xtask vm`.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /run /tmp
modprobe virtio_pci 2>/dev/null
export STP_VOLUME=/dev/vda STP_RUN_DIR=/run/stp
modprobe virtio_blk
for device in /sys/bus/pci/devices/*; do
	case "$(cat $device/vendor) $(cat $device/device)" in
	# ivshmem: memory that guests share
	"0x1af4 0x1110") STP_VOLUME=mem:$device/resource2 ;;
	esac
done
until [ -e /dev/vport0p1 ]; do sleep 0.1; done
exec 3<>/dev/vport0p1
echo stp-guest-is-ready >&3
# When the shell ends, so does the guest.
sh <&3 >&3 2>&1
poweroff -f
