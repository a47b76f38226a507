package store

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestNetworkFileSystems(t *testing.T) {
	for _, kind := range []int64{unix.NFS_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.V9FS_MAGIC, int64(int32(-11317950))} {
		if judgeLocal(kind) == nil {
			t.Errorf("%#x is another machine's", kind)
		}
	}
	for _, kind := range []int64{unix.EXT4_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.OVERLAYFS_SUPER_MAGIC} {
		if err := judgeLocal(kind); err != nil {
			t.Errorf("%#x: %v", kind, err)
		}
	}
}
