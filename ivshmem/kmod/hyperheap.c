// SPDX-License-Identifier: GPL-2.0
/*
 * hyperheap - the guest's side of a heap: QEMU's ivshmem-doorbell PCI device
 *
 * BAR0 holds the registers, of which two matter: IVPosition (our peer id) and Doorbell (a store of
 * peer << 16 | vector interrupts that peer). BAR2 is the heap, memory that several guests share. The device
 * raises MSI-X vectors when a peer rings.
 *
 * Each device is /dev/hyperheapN. User space maps granted ranges of the heap, has vectors signalled to eventfds,
 * and rings; hyperheap_ioctl.h says how.
 *
 * Who keeps what alive
 * --------------------
 * struct hh_device lives from probe() until remove() has run and the last open file is gone (hh_device.ref).
 * struct hh_file lives as long as its struct file, which every mapping of it holds as well.
 * The hardware (registers, BARs, interrupts) may be touched on the read side of hh_device.srcu while hh_present():
 * remove() sets hh_device.gone, waits for the readers, and takes the hardware away.
 *
 * Locks, outermost first
 * ----------------------
 *   mmap_lock			taken by mm/ around hh_mmap() and hh_fault()
 *   hh_device.srcu		read side: see above; may sleep
 *   hh_device.lock		hh_device.files, and changes of hh_vector.bindings and hh_file.bindings; mm/'s
 *				i_mmap_rwsem nests inside it, mmap_lock never does
 *   hh_file.lock		hh_file.grants, .confined and .blank
 *   hh_vector.lock		hh_vector.bindings; taken by the interrupt handler
 *
 * User memory is never accessed with one of ours held: that may take mmap_lock, or as long as user space likes.
 */

#include <linux/capability.h>
#include <linux/eventfd.h>
#include <linux/fs.h>
#include <linux/idr.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/srcu.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/wait.h>

#include <hyperheap/hyperheap_ioctl.h>

#define HH_BAR_REGISTERS	0
#define HH_BAR_HEAP		2

#define HH_REGISTER_IVPOSITION	0x08

#define HH_MAX_PEER		0xffff

/* Revision 0 is QEMU before 2.6, whose BAR2 may have no memory behind it yet. */
#define HH_FIRST_REVISION	1

struct hh_vector {
	spinlock_t lock;
	struct list_head bindings;
};

struct hh_device {
	struct kref ref;
	struct pci_dev *pdev;
	struct miscdevice misc;
	int number;
	char name[32];

	void __iomem *registers;
	phys_addr_t registers_start;
	bool registers_alone;
	phys_addr_t heap_start;
	u64 heap_size;

	struct srcu_struct srcu;
	bool gone;
	wait_queue_head_t gone_wait;

	struct mutex lock;
	struct list_head files;

	unsigned int vector_count;	/* that work; fixed once the device can be opened */
	unsigned int irqs_requested;
	struct hh_vector vectors[];
};

/* An eventfd that a vector signals; on the lists of that vector and of the open file that leases it. */
struct hh_binding {
	struct list_head in_vector;
	struct list_head in_file;
	struct hh_vector *vector;
	struct eventfd_ctx *eventfd;
};

/* A range that an open file may map. The ranges of a file neither overlap nor touch. */
struct hh_grant {
	struct list_head in_file;
	u64 start;
	u64 end;
};

struct hh_file {
	struct hh_device *device;
	struct address_space *mapping;
	struct list_head in_device;
	struct list_head bindings;

	struct mutex lock;
	struct list_head grants;
	bool confined;		/* has been granted something, so it never maps the whole heap again */
	struct page *blank;	/* what mappings show once the device is gone */
};

static DEFINE_IDA(hh_numbers);

/* Under hh_device.srcu: the hardware is there, and stays until the caller leaves the read side. */
static bool hh_present(struct hh_device *device)
{
	return !READ_ONCE(device->gone);
}

static void hh_device_release(struct kref *ref)
{
	struct hh_device *device = container_of(ref, struct hh_device, ref);

	cleanup_srcu_struct(&device->srcu);
	ida_free(&hh_numbers, device->number);
	kfree(device);
}

/* Vectors */

static void hh_signal(struct eventfd_ctx *eventfd)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	eventfd_signal(eventfd);
#else
	eventfd_signal(eventfd, 1);
#endif
}

static void hh_signal_all(struct hh_vector *vector)
{
	struct hh_binding *binding;
	unsigned long flags;

	spin_lock_irqsave(&vector->lock, flags);
	list_for_each_entry(binding, &vector->bindings, in_vector)
		hh_signal(binding->eventfd);
	spin_unlock_irqrestore(&vector->lock, flags);
}

static irqreturn_t hh_interrupt(int irq, void *data)
{
	hh_signal_all(data);
	return IRQ_HANDLED;
}

static void hh_unbind(struct hh_device *device, struct hh_binding *binding)
{
	lockdep_assert_held(&device->lock);

	spin_lock_irq(&binding->vector->lock);
	list_del(&binding->in_vector);
	spin_unlock_irq(&binding->vector->lock);
	list_del(&binding->in_file);
	eventfd_ctx_put(binding->eventfd);
	kfree(binding);
}

/* Only hh_device.lock makes a list of bindings longer or shorter, so it is enough to look. */
static struct hh_vector *hh_find_vector(struct hh_device *device, u32 wanted)
{
	unsigned int i;

	lockdep_assert_held(&device->lock);

	if (wanted != HH_VECTOR_ANY)
		return wanted < device->vector_count ? &device->vectors[wanted] : ERR_PTR(-EINVAL);

	for (i = 1; i < device->vector_count; i++)
		if (list_empty(&device->vectors[i].bindings))
			return &device->vectors[i];
	return ERR_PTR(-ENOSPC);
}

static long hh_ioctl_bind(struct hh_file *file, struct hh_bind __user *arg)
{
	struct hh_device *device = file->device;
	struct hh_binding *binding;
	struct hh_bind bind;
	long error;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (copy_from_user(&bind, arg, sizeof(bind)))
		return -EFAULT;

	binding = kzalloc(sizeof(*binding), GFP_KERNEL_ACCOUNT);
	if (!binding)
		return -ENOMEM;
	binding->eventfd = eventfd_ctx_fdget(bind.eventfd);
	if (IS_ERR(binding->eventfd)) {
		error = PTR_ERR(binding->eventfd);
		goto free_binding;
	}

	mutex_lock(&device->lock);
	/* Checked in here, so that hh_remove() either refuses this eventfd or signals it. */
	if (READ_ONCE(device->gone))
		binding->vector = ERR_PTR(-ENODEV);
	else
		binding->vector = hh_find_vector(device, bind.vector);
	if (IS_ERR(binding->vector)) {
		error = PTR_ERR(binding->vector);
		mutex_unlock(&device->lock);
		goto put_eventfd;
	}
	bind.vector = binding->vector - device->vectors;
	list_add_tail(&binding->in_file, &file->bindings);
	spin_lock_irq(&binding->vector->lock);
	list_add_tail(&binding->in_vector, &binding->vector->bindings);
	spin_unlock_irq(&binding->vector->lock);
	mutex_unlock(&device->lock);

	if (copy_to_user(arg, &bind, sizeof(bind))) {
		mutex_lock(&device->lock);
		hh_unbind(device, binding);
		mutex_unlock(&device->lock);
		return -EFAULT;
	}
	return 0;

put_eventfd:
	eventfd_ctx_put(binding->eventfd);
free_binding:
	kfree(binding);
	return error;
}

/* Grants */

static int hh_check_range(struct hh_device *device, u64 start, u64 length)
{
	if (!length || !PAGE_ALIGNED(start) || !PAGE_ALIGNED(length))
		return -EINVAL;
	if (start >= device->heap_size || length > device->heap_size - start)
		return -EINVAL;
	return 0;
}

/* Unites @added with every range that it overlaps or touches. */
static void hh_add_grant(struct hh_file *file, struct hh_grant *added)
{
	struct hh_grant *grant, *next;

	lockdep_assert_held(&file->lock);

	list_for_each_entry_safe(grant, next, &file->grants, in_file) {
		if (grant->end < added->start || added->end < grant->start)
			continue;
		added->start = min(added->start, grant->start);
		added->end = max(added->end, grant->end);
		list_del(&grant->in_file);
		kfree(grant);
	}
	list_add_tail(&added->in_file, &file->grants);
	file->confined = true;
}

/* Cuts [start, end) out of all ranges. Returns whether @spare was used: at most one range lies on both sides. */
static bool hh_cut_grants(struct hh_file *file, u64 start, u64 end, struct hh_grant *spare)
{
	struct hh_grant *grant, *next;

	lockdep_assert_held(&file->lock);

	list_for_each_entry_safe(grant, next, &file->grants, in_file) {
		if (grant->end <= start || end <= grant->start)
			continue;
		if (grant->start < start && end < grant->end) {
			spare->start = end;
			spare->end = grant->end;
			grant->end = start;
			list_add(&spare->in_file, &grant->in_file);
			return true;
		}
		if (grant->start < start) {
			grant->end = start;
		} else if (end < grant->end) {
			grant->start = end;
		} else {
			list_del(&grant->in_file);
			kfree(grant);
		}
	}
	return false;
}

static long hh_ioctl_grant(struct hh_file *file, const struct hh_range __user *arg, bool revoke)
{
	struct hh_grant *grant;
	struct hh_range range;
	int error;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (copy_from_user(&range, arg, sizeof(range)))
		return -EFAULT;
	error = hh_check_range(file->device, range.offset, range.length);
	if (error)
		return error;

	grant = kzalloc(sizeof(*grant), GFP_KERNEL_ACCOUNT);
	if (!grant)
		return -ENOMEM;
	grant->start = range.offset;
	grant->end = range.offset + range.length;

	mutex_lock(&file->lock);
	if (!revoke) {
		hh_add_grant(file, grant);
		grant = NULL;
	} else if (hh_cut_grants(file, range.offset, range.offset + range.length, grant)) {
		grant = NULL;
	}
	mutex_unlock(&file->lock);
	kfree(grant);
	return 0;
}

static bool hh_may_ring(struct hh_file *file)
{
	bool granted;

	mutex_lock(&file->lock);
	granted = !list_empty(&file->grants);
	mutex_unlock(&file->lock);
	return granted || capable(CAP_SYS_ADMIN);
}

static bool hh_may_map(struct hh_file *file, u64 start, u64 end)
{
	struct hh_grant *grant;
	bool granted = false;

	mutex_lock(&file->lock);
	list_for_each_entry(grant, &file->grants, in_file) {
		if (grant->start <= start && end <= grant->end) {
			granted = true;
			break;
		}
	}
	if (!granted && !file->confined)
		granted = capable(CAP_SYS_ADMIN);
	mutex_unlock(&file->lock);
	return granted;
}

/*
 * Mappings
 *
 * The heap is other people's RAM and must be mapped write-back. The kernel's own ways to map a PCI BAR
 * (remap_pfn_range(), vmf_insert_pfn(), vmf_insert_mixed()) ask x86's PAT tracking for the memory type, which
 * grants write-back only where the MTRRs say so. The firmware has set these to uncached for the PCI hole, so the
 * answer there is UC-. Intel's EPT without assigned devices ignores a guest's types; AMD honours the PTE, and
 * a heap mapped UC- crawls. The MTRRs of a guest bind nobody, so we want exactly what we ask for.
 *
 * Hence we write the page-table entries ourselves, as i915 does for the same reason
 * (drivers/gpu/drm/i915/i915_mm.c): apply_to_page_range() with special PTEs in a VM_PFNMAP mapping. It can
 * neither fail for want of a type nor be downgraded, so there is no second way to fall back to. Nothing else
 * in the guest maps these pages, which is what the tracking would watch over.
 *
 * Special PTEs have no struct page, so get_user_pages() refuses them (no O_DIRECT, no futex in the heap), and in
 * return nobody can hold a page when the device is unplugged: zapping the PTEs is all it takes.
 *
 * All PTEs are made in hh_fault(). mmap() would be too early: a device that goes then would not find the
 * mapping, which is linked to the file only after hh_mmap() has returned.
 */

struct hh_fill {
	struct mm_struct *mm;
	unsigned long pfn;
	unsigned long pfn_step;
	pgprot_t prot;
};

static int hh_fill_one(pte_t *pte, unsigned long address, void *data)
{
	struct hh_fill *fill = data;

	/* A fault of another thread may have been here first. */
	if (pte_none(ptep_get(pte)))
		set_pte_at(fill->mm, address, pte, pte_mkspecial(pfn_pte(fill->pfn, fill->prot)));
	fill->pfn += fill->pfn_step;
	return 0;
}

static struct page *hh_get_blank(struct hh_file *file)
{
	struct page *blank;

	mutex_lock(&file->lock);
	if (!file->blank)
		file->blank = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	blank = file->blank;
	mutex_unlock(&file->lock);
	return blank;
}

/* Where a mapping's page at @offset is in this guest's physical memory. */
static unsigned long hh_find_pfn(struct hh_device *device, u64 offset)
{
	if (offset >= HH_MMAP_DOORBELL)
		return PHYS_PFN(device->registers_start + (offset - HH_MMAP_DOORBELL));
	return PHYS_PFN(device->heap_start + offset);
}

static vm_fault_t hh_fault(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	struct hh_file *file = vma->vm_file->private_data;
	struct hh_device *device = file->device;
	struct hh_fill fill = { .mm = vma->vm_mm };
	unsigned long start, end;
	struct page *blank;
	int index, error;

	/* All of the mapping that this address's page table covers: on x86 one fault makes 2 MiB. */
	start = max(vma->vm_start, vmf->address & PMD_MASK);
	end = min(vma->vm_end, (vmf->address & PMD_MASK) + PMD_SIZE);

	index = srcu_read_lock(&device->srcu);
	if (hh_present(device)) {
		fill.pfn = hh_find_pfn(device, ((u64)vma->vm_pgoff << PAGE_SHIFT) + (start - vma->vm_start));
		fill.pfn_step = 1;
		fill.prot = pgprot_decrypted(vma->vm_page_prot);
	} else {
		/* The same page everywhere, and cached as RAM must be, whatever was mapped here before. */
		blank = hh_get_blank(file);
		if (!blank) {
			error = -ENOMEM;
			goto out;
		}
		fill.pfn = page_to_pfn(blank);
		fill.prot = vm_get_page_prot(vma->vm_flags);
	}
	error = apply_to_page_range(fill.mm, start, end - start, hh_fill_one, &fill);
out:
	srcu_read_unlock(&device->srcu, index);
	return error ? VM_FAULT_OOM : VM_FAULT_NOPAGE;
}

static const struct vm_operations_struct hh_vm_ops = {
	.fault = hh_fault,
};

static int hh_mmap(struct file *filp, struct vm_area_struct *vma)
{
	struct hh_file *file = filp->private_data;
	struct hh_device *device = file->device;
	u64 length = vma->vm_end - vma->vm_start;
	u64 start = (u64)vma->vm_pgoff << PAGE_SHIFT;
	unsigned long flags = VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP;

	if (READ_ONCE(device->gone))
		return -ENODEV;
	if (!(vma->vm_flags & VM_SHARED) || vma->vm_flags & VM_EXEC)
		return -EINVAL;
	if (start >> PAGE_SHIFT != vma->vm_pgoff)
		return -EINVAL;

	if (start == HH_MMAP_DOORBELL) {
		if (length != PAGE_SIZE)
			return -EINVAL;
		if (!hh_may_ring(file))
			return -EACCES;
		if (!device->registers_alone)
			return -EOPNOTSUPP;
		vma->vm_page_prot = pgprot_noncached(vma->vm_page_prot);
	} else {
		if (hh_check_range(device, start, length))
			return -EINVAL;
		if (!hh_may_map(file, start, start + length))
			return -EACCES;
	}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_mod(vma, flags, VM_MAYEXEC);
#else
	vma->vm_flags = (vma->vm_flags | flags) & ~VM_MAYEXEC;
#endif
	vma->vm_ops = &hh_vm_ops;
	return 0;
}

/* Open files */

static long hh_ioctl_info(struct hh_file *file, struct hh_info __user *arg)
{
	struct hh_device *device = file->device;
	struct hh_info info = {
		.heap_size = device->heap_size,
		.vectors = device->vector_count,
		.flags = device->registers_alone ? HH_INFO_DOORBELL_PAGE : 0,
	};
	bool present;
	int index;

	index = srcu_read_lock(&device->srcu);
	present = hh_present(device);
	if (present)
		info.peer_id = ioread32(device->registers + HH_REGISTER_IVPOSITION);
	srcu_read_unlock(&device->srcu, index);

	if (!present)
		return -ENODEV;
	if (info.peer_id > HH_MAX_PEER)
		return -EAGAIN;
	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
}

static long hh_ioctl_ring(struct hh_file *file, const struct hh_ring_request __user *arg)
{
	struct hh_device *device = file->device;
	struct hh_ring_request ring;
	bool present;
	int index;

	if (!hh_may_ring(file))
		return -EPERM;
	if (copy_from_user(&ring, arg, sizeof(ring)))
		return -EFAULT;
	if (ring.peer > HH_MAX_PEER || ring.vector >= device->vector_count)
		return -EINVAL;

	index = srcu_read_lock(&device->srcu);
	present = hh_present(device);
	/* Like every iowrite32() it comes after all earlier stores to memory, so the peer sees those. */
	if (present)
		iowrite32(ring.peer << 16 | ring.vector, device->registers + HH_DOORBELL_REGISTER);
	srcu_read_unlock(&device->srcu, index);
	return present ? 0 : -ENODEV;
}

static long hh_ioctl(struct file *filp, unsigned int command, unsigned long arg)
{
	struct hh_file *file = filp->private_data;
	void __user *user = (void __user *)arg;

	if (READ_ONCE(file->device->gone))
		return -ENODEV;
	switch (command) {
	case HH_IOC_INFO:
		return hh_ioctl_info(file, user);
	case HH_IOC_GRANT:
		return hh_ioctl_grant(file, user, false);
	case HH_IOC_REVOKE:
		return hh_ioctl_grant(file, user, true);
	case HH_IOC_BIND:
		return hh_ioctl_bind(file, user);
	case HH_IOC_RING:
		return hh_ioctl_ring(file, user);
	default:
		return -ENOTTY;
	}
}

static __poll_t hh_poll(struct file *filp, poll_table *wait)
{
	struct hh_file *file = filp->private_data;

	poll_wait(filp, &file->device->gone_wait, wait);
	return READ_ONCE(file->device->gone) ? EPOLLHUP | EPOLLERR : 0;
}

static int hh_open(struct inode *inode, struct file *filp)
{
	/* misc_open() leaves its device here, and keeps misc_deregister() waiting until we return. */
	struct hh_device *device = container_of(filp->private_data, struct hh_device, misc);
	struct hh_file *file;

	file = kzalloc(sizeof(*file), GFP_KERNEL_ACCOUNT);
	if (!file)
		return -ENOMEM;
	kref_get(&device->ref);
	file->device = device;
	file->mapping = filp->f_mapping;
	INIT_LIST_HEAD(&file->bindings);
	INIT_LIST_HEAD(&file->grants);
	mutex_init(&file->lock);
	filp->private_data = file;

	mutex_lock(&device->lock);
	list_add_tail(&file->in_device, &device->files);
	mutex_unlock(&device->lock);
	return nonseekable_open(inode, filp);
}

static int hh_release(struct inode *inode, struct file *filp)
{
	struct hh_file *file = filp->private_data;
	struct hh_device *device = file->device;
	struct hh_binding *binding, *next_binding;
	struct hh_grant *grant, *next_grant;

	mutex_lock(&device->lock);
	list_del(&file->in_device);
	list_for_each_entry_safe(binding, next_binding, &file->bindings, in_file)
		hh_unbind(device, binding);
	mutex_unlock(&device->lock);

	list_for_each_entry_safe(grant, next_grant, &file->grants, in_file)
		kfree(grant);
	if (file->blank)
		__free_page(file->blank);
	mutex_destroy(&file->lock);
	kfree(file);
	kref_put(&device->ref, hh_device_release);
	return 0;
}

static const struct file_operations hh_file_operations = {
	.owner = THIS_MODULE,
	.open = hh_open,
	.release = hh_release,
	.unlocked_ioctl = hh_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = hh_mmap,
	.poll = hh_poll,
};

/* The device */

static void hh_free_irqs(struct hh_device *device)
{
	while (device->irqs_requested) {
		device->irqs_requested--;
		pci_free_irq(device->pdev, device->irqs_requested, &device->vectors[device->irqs_requested]);
	}
	pci_free_irq_vectors(device->pdev);
}

/* As many vectors as there are to be had: with one the agent can work, and a process without one uses TCP. */
static int hh_request_irqs(struct hh_device *device)
{
	struct device *dev = &device->pdev->dev;
	int error = 0, got;

	got = pci_alloc_irq_vectors(device->pdev, 1, device->vector_count, PCI_IRQ_MSIX);
	if (got < 0)
		return dev_err_probe(dev, got, "no MSI-X vector to be had\n");

	for (; device->irqs_requested < got; device->irqs_requested++) {
		error = pci_request_irq(device->pdev, device->irqs_requested, hh_interrupt, NULL,
					&device->vectors[device->irqs_requested], "%s-%u", device->name,
					device->irqs_requested);
		if (error)
			break;
	}
	if (!device->irqs_requested) {
		pci_free_irq_vectors(device->pdev);
		return dev_err_probe(dev, error, "cannot request an interrupt\n");
	}
	if (device->irqs_requested < device->vector_count)
		dev_warn(dev, "only %u of %u vectors\n", device->irqs_requested, device->vector_count);
	device->vector_count = device->irqs_requested;
	return 0;
}

static struct hh_device *hh_device_alloc(struct pci_dev *pdev, unsigned int vectors)
{
	struct hh_device *device;
	unsigned int i;
	int error;

	device = kzalloc(struct_size(device, vectors, vectors), GFP_KERNEL);
	if (!device)
		return ERR_PTR(-ENOMEM);
	error = init_srcu_struct(&device->srcu);
	if (error)
		goto free_device;
	device->number = ida_alloc(&hh_numbers, GFP_KERNEL);
	if (device->number < 0) {
		error = device->number;
		goto cleanup_srcu;
	}
	kref_init(&device->ref);
	snprintf(device->name, sizeof(device->name), "hyperheap%d", device->number);
	device->pdev = pdev;
	init_waitqueue_head(&device->gone_wait);
	mutex_init(&device->lock);
	INIT_LIST_HEAD(&device->files);
	device->vector_count = vectors;
	for (i = 0; i < vectors; i++) {
		spin_lock_init(&device->vectors[i].lock);
		INIT_LIST_HEAD(&device->vectors[i].bindings);
	}
	return device;

cleanup_srcu:
	cleanup_srcu_struct(&device->srcu);
free_device:
	kfree(device);
	return ERR_PTR(error);
}

/* Takes the PCI device into use: BARs, registers, bus mastering (without which no MSI-X message leaves it). */
static int hh_start_hardware(struct hh_device *device)
{
	struct pci_dev *pdev = device->pdev;
	int error;

	error = pci_enable_device_mem(pdev);
	if (error)
		return dev_err_probe(&pdev->dev, error, "cannot enable\n");
	error = pci_request_regions(pdev, device->name);
	if (error) {
		dev_err_probe(&pdev->dev, error, "BARs in use\n");
		goto disable;
	}
	device->registers = pci_iomap(pdev, HH_BAR_REGISTERS, 0);
	if (!device->registers) {
		error = dev_err_probe(&pdev->dev, -ENOMEM, "cannot map the registers\n");
		goto release_regions;
	}
	device->registers_start = pci_resource_start(pdev, HH_BAR_REGISTERS);
	/*
	 * A BAR of 256 bytes may share its page with another device's. pci=resource_alignment=12@pci:1af4:1110
	 * makes the kernel move it into a page that it then calls the BAR's own.
	 */
	device->registers_alone = PAGE_ALIGNED(device->registers_start) &&
				  pci_resource_len(pdev, HH_BAR_REGISTERS) >= PAGE_SIZE;
	device->heap_start = pci_resource_start(pdev, HH_BAR_HEAP);
	device->heap_size = pci_resource_len(pdev, HH_BAR_HEAP);

	pci_set_master(pdev);
	error = hh_request_irqs(device);
	if (!error)
		return 0;

	pci_clear_master(pdev);
	pci_iounmap(pdev, device->registers);
release_regions:
	pci_release_regions(pdev);
disable:
	pci_disable_device(pdev);
	return error;
}

static void hh_stop_hardware(struct hh_device *device)
{
	hh_free_irqs(device);
	pci_clear_master(device->pdev);
	pci_iounmap(device->pdev, device->registers);
	pci_release_regions(device->pdev);
	pci_disable_device(device->pdev);
}

static int hh_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct hh_device *device;
	int vectors, error;

	if (pdev->revision < HH_FIRST_REVISION)
		return dev_err_probe(&pdev->dev, -ENODEV, "QEMU older than 2.6\n");
	if (pci_resource_len(pdev, HH_BAR_HEAP) < PAGE_SIZE)
		return dev_err_probe(&pdev->dev, -ENODEV, "BAR2 has no room: no heap\n");
	vectors = pci_msix_vec_count(pdev);
	if (vectors < 1)
		return dev_err_probe(&pdev->dev, -ENODEV, "no MSI-X: not an ivshmem-doorbell device\n");

	device = hh_device_alloc(pdev, vectors);
	if (IS_ERR(device))
		return PTR_ERR(device);
	error = hh_start_hardware(device);
	if (error)
		goto put_device;

	device->misc.minor = MISC_DYNAMIC_MINOR;
	device->misc.name = device->name;
	device->misc.fops = &hh_file_operations;
	device->misc.parent = &pdev->dev;
	device->misc.mode = 0600;
	pci_set_drvdata(pdev, device);
	error = misc_register(&device->misc);
	if (error) {
		dev_err_probe(&pdev->dev, error, "cannot register /dev/%s\n", device->name);
		goto stop_hardware;
	}
	dev_info(&pdev->dev, "%s: heap of %llu KiB, %u vectors, peer id %d%s\n", device->name,
		 device->heap_size >> 10, device->vector_count,
		 (int)ioread32(device->registers + HH_REGISTER_IVPOSITION),
		 device->registers_alone ? ", doorbell page" : "");
	return 0;

stop_hardware:
	hh_stop_hardware(device);
put_device:
	kref_put(&device->ref, hh_device_release);
	return error;
}

static void hh_remove(struct pci_dev *pdev)
{
	struct hh_device *device = pci_get_drvdata(pdev);
	struct hh_file *file;
	unsigned int i;

	/* No new open files, */
	misc_deregister(&device->misc);

	/* nobody at the hardware and no new PTEs, */
	WRITE_ONCE(device->gone, true);
	synchronize_srcu(&device->srcu);

	mutex_lock(&device->lock);
	/* no old PTEs (from here on mappings show the blank page), */
	list_for_each_entry(file, &device->files, in_device)
		unmap_mapping_range(file->mapping, 0, 0, 1);
	/* and whoever sleeps must look again. */
	for (i = 0; i < device->vector_count; i++)
		hh_signal_all(&device->vectors[i]);
	mutex_unlock(&device->lock);
	wake_up_all(&device->gone_wait);

	hh_stop_hardware(device);
	kref_put(&device->ref, hh_device_release);
}

static const struct pci_device_id hh_ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT_QUMRANET, 0x1110) },
	{ }
};
MODULE_DEVICE_TABLE(pci, hh_ids);

static struct pci_driver hh_driver = {
	.name = "hyperheap",
	.id_table = hh_ids,
	.probe = hh_probe,
	.remove = hh_remove,
};
module_pci_driver(hh_driver);

MODULE_AUTHOR("The hyperheap authors");
MODULE_DESCRIPTION("Guest driver for hyperheap's shared heaps (ivshmem-doorbell)");
MODULE_LICENSE("GPL");
