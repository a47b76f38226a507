package store

import (
	"slices"

	"golang.org/x/sys/unix"
)

// remote are the file systems that are another machine's. FUSE is not among
// them: the kernel does not tell what is behind it.
var remote = []int64{
	unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC,
	unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC, unix.CODA_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC,
	unix.V9FS_MAGIC, unix.OCFS2_SUPER_MAGIC,
	0x01161970, // GFS2
	0x0bd00bd0, // Lustre
	0x47504653, // GPFS
}

// checkLocal refuses a directory on a network file system.
func checkLocal(dir string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return err
	}
	return judgeLocal(int64(s.Type))
}

// judgeLocal is the rule of checkLocal. Some architectures have the type in 32
// bits with a sign.
func judgeLocal(kind int64) error {
	if slices.Contains(remote, kind&0xffffffff) {
		return errRemote
	}
	return nil
}
