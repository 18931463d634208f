// SPDX-License-Identifier: GPL-2.0-only
/*
 * The driver of the virtio-vas device.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#include "store.h"

static struct vas_store *the_store;	/* by store_lock */
static DEFINE_SPINLOCK(store_lock);

static void store_free(struct kref *kref)
{
	kfree(container_of(kref, struct vas_store, kref));
}

/* The store, or NULL. */
struct vas_store *vas_store_get(void)
{
	struct vas_store *store;

	spin_lock(&store_lock);
	store = the_store;
	if (store)
		kref_get(&store->kref);
	spin_unlock(&store_lock);
	return store;
}

void vas_store_put(struct vas_store *store)
{
	kref_put(&store->kref, store_free);
}

bool vas_store_present(void)
{
	return READ_ONCE(the_store);
}

static void vas_queue_done(struct virtqueue *vq)
{
	struct vas_store *store = vq->vdev->priv;
	struct vas_queue *q = &store->queue[vq->index];
	struct vas_request *r;
	unsigned long flags;
	unsigned int len;

	spin_lock_irqsave(&q->lock, flags);
	do {
		virtqueue_disable_cb(vq);
		while ((r = virtqueue_get_buf(vq, &len)))
			vas_request_end(r, len, 0);
	} while (!virtqueue_enable_cb(vq));
	spin_unlock_irqrestore(&q->lock, flags);
}

/* From here on the device touches nothing, and nobody waits for it. */
static void store_kill(struct vas_store *store)
{
	struct vas_request *r;

	spin_lock(&store_lock);
	if (the_store == store) {
		WRITE_ONCE(the_store, NULL);
		vas_store_put(store);	/* not the last: the driver has one */
	}
	spin_unlock(&store_lock);
	for (int i = 0; i < VIRTIO_VAS_QUEUES; i++) {
		spin_lock_irq(&store->queue[i].lock);
		store->dead = true;
		spin_unlock_irq(&store->queue[i].lock);
	}
	virtio_reset_device(store->vdev);
	for (int i = 0; i < VIRTIO_VAS_QUEUES; i++) {
		struct vas_queue *q = &store->queue[i];

		spin_lock_irq(&q->lock);
		while ((r = virtqueue_detach_unused_buf(q->vq)))
			vas_request_end(r, 0, -EIO);
		spin_unlock_irq(&q->lock);
	}
}

static void store_reset_work(struct work_struct *work)
{
	struct vas_store *store = container_of(work, struct vas_store,
					       reset_work);
	struct virtio_device *vdev = store->vdev;

	if (!(vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_NEEDS_RESET))
		return;
	dev_err(&vdev->dev, "the device failed; the store is gone\n");
	store_kill(store);
}

static void store_config_changed(struct virtio_device *vdev)
{
	struct vas_store *store = vdev->priv;

	schedule_work(&store->reset_work);
}

static int store_probe(struct virtio_device *vdev)
{
	struct virtqueue_info info[VIRTIO_VAS_QUEUES] = {
		[VIRTIO_VAS_REQUESTQ] = { "request", vas_queue_done },
		[VIRTIO_VAS_RELEASEQ] = { "release", vas_queue_done },
	};
	struct virtqueue *vqs[VIRTIO_VAS_QUEUES];
	struct vas_store *store;
	u32 version;
	int err;

	if (!virtio_has_feature(vdev, VIRTIO_F_VERSION_1))
		return -ENODEV;
	virtio_cread_le(vdev, struct virtio_vas_config, version, &version);
	if (version != VIRTIO_VAS_VERSION) {
		dev_err(&vdev->dev,
			"the store is of version %u, and this kernel knows only %u\n",
			version, VIRTIO_VAS_VERSION);
		return -ENODEV;
	}
	if (vas_store_present())
		return -EBUSY;

	store = kzalloc(sizeof(*store), GFP_KERNEL);
	if (!store)
		return -ENOMEM;
	kref_init(&store->kref);
	store->vdev = vdev;
	INIT_WORK(&store->reset_work, store_reset_work);
	vdev->priv = store;
	for (int i = 0; i < VIRTIO_VAS_QUEUES; i++)
		spin_lock_init(&store->queue[i].lock);
	err = virtio_find_vqs(vdev, VIRTIO_VAS_QUEUES, vqs, info, NULL);
	if (err) {
		vas_store_put(store);
		return err;
	}
	for (int i = 0; i < VIRTIO_VAS_QUEUES; i++)
		store->queue[i].vq = vqs[i];
	virtio_device_ready(vdev);
	vas_bounce_prepare();

	spin_lock(&store_lock);
	kref_get(&store->kref);
	WRITE_ONCE(the_store, store);
	spin_unlock(&store_lock);
	vas_report_start();
	return 0;
}

static void store_remove(struct virtio_device *vdev)
{
	struct vas_store *store = vdev->priv;

	cancel_work_sync(&store->reset_work);
	/* First: a report that waits for the device would hold up the next. */
	store_kill(store);
	vas_report_stop();
	vdev->config->del_vqs(vdev);
	vas_store_put(store);
}

static const struct virtio_device_id store_ids[] = {
	{ VIRTIO_VAS_DEVICE_ID, VIRTIO_DEV_ANY_ID },
	{ 0 },
};

static struct virtio_driver store_driver = {
	.driver.name = "virtio-vas",
	.id_table = store_ids,
	.probe = store_probe,
	.remove = store_remove,
	.config_changed = store_config_changed,
};
module_virtio_driver(store_driver);
