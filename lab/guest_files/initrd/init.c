// SPDX-License-Identifier: Apache-2.0
/*
 * init of the image's initial RAM disk: from the kernel's first process to systemd in a few milliseconds.
 *
 * A distribution's initrd spends seconds under TCG on finding out what this one knows: which modules the virtual
 * hardware needs (/modules, in the order of their names), and that the disks are ext4 and carry labels.
 * The tools disk is mounted here already, and its units are given to systemd before it starts, which saves the
 * guest a reload of its manager.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
	SUPERBLOCK = 1024,	/* ext4: where the superblock starts, and in it the magic and the label */
	MAGIC = SUPERBLOCK + 0x38,
	LABEL = SUPERBLOCK + 0x78,
	LABEL_SIZE = 16,
};

static void die(const char *what, const char *which)
{
	fprintf(stderr, "hyperheap-initrd: %s %s: %s\n", what, which, strerror(errno));
	sync();
	reboot(RB_POWER_OFF);
	_exit(1);
}

static void load_modules(void)
{
	struct dirent **found;
	int count = scandir("/modules", &found, NULL, alphasort);

	for (int i = 0; i < count; i++) {
		char path[512];

		if (found[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/modules/%s", found[i]->d_name);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0)
			fprintf(stderr, "hyperheap-initrd: %s: %s\n", path, strerror(errno));
		close(fd);
	}
}

static bool has_label(const char *device, const char *label)
{
	unsigned char block[LABEL + LABEL_SIZE];
	int fd = open(device, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	ssize_t got = pread(fd, block, sizeof(block), 0);
	close(fd);
	return got == (ssize_t)sizeof(block) && block[MAGIC] == 0x53 && block[MAGIC + 1] == 0xef &&
	       strncmp((char *)block + LABEL, label, LABEL_SIZE) == 0;
}

static bool find_disk(const char *label, char device[16])
{
	for (char letter = 'a'; letter <= 'z'; letter++) {
		snprintf(device, 16, "/dev/vd%c", letter);
		if (has_label(device, label))
			return true;
	}
	return false;
}

/* Disks appear a little after their driver; ten seconds is an age even under TCG. */
static void mount_disk(const char *label, const char *target, unsigned long flags)
{
	const struct timespec pause = { .tv_nsec = 2 * 1000 * 1000 };
	char device[16];

	for (int tries = 0; !find_disk(label, device); tries++) {
		if (tries == 5000) {
			errno = ENODEV;
			die("no disk with the label", label);
		}
		nanosleep(&pause, NULL);
	}
	if (mount(device, target, "ext4", flags, NULL) < 0)
		die("cannot mount", device);
}

int main(void)
{
	if (mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, NULL) < 0 && errno != EBUSY)
		die("cannot mount", "/dev");
	load_modules();
	mount_disk("hyperheap-root", "/root", MS_NOATIME);
	mount_disk("HYPERHEAP", "/root/opt/hyperheap", MS_RDONLY | MS_NOATIME);
	if (mount("/dev", "/root/dev", NULL, MS_MOVE, NULL) < 0)
		die("cannot move", "/dev");
	if (chdir("/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		die("cannot enter", "the root disk");
	/* An empty last entry stands for systemd's own directories. */
	setenv("SYSTEMD_UNIT_PATH", "/opt/hyperheap/units:", 1);
	execl("/sbin/init", "/sbin/init", (char *)NULL);
	die("cannot start", "/sbin/init");
}
