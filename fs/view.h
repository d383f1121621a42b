/*
 * view.h - directories and files that are not stored: DESIGN §7, docs/views.md.
 *
 *     DIR/.tensors[@VARIANT]/NAME.npy, NAME.safetensors   one file for each tensor of a model
 *     DIR/.shards[@VARIANT]/SIZE/…                        the model cut into shards of that size
 *
 * They are found by name in every directory, and are in no listing unless the mount is
 * told so. Their inodes are made when somebody looks, and forgotten with the kernel's
 * count. An inode of a file stands for one state of the model: its bytes never change, so
 * the kernel may keep its pages; when the model is another, the name leads to another
 * inode, and who opens the old one is told ESTALE, upon which the kernel looks again. It holds
 * nothing of the store until it is opened.
 *
 * Requests for them are sent here by the op_*.c files, by the number of the inode.
 */
#ifndef WFS_VIEW_H
#define WFS_VIEW_H

#include <limits.h>
#include <pthread.h>
#include <sys/stat.h>

#include "fs/fuse.h"
#include "lib/model.h"
#include "lib/table.h"

struct wfs_driver;

/* Inodes of the store are smaller: SQLite counts them from 1. */
#define WFS_VIEW_INO (UINT64_C(1) << 62)

static inline bool wfs_is_view(uint64_t ino)
{
	return ino >= WFS_VIEW_INO;
}

/* A variant follows behind '@'. */
#define WFS_VIEW_TENSORS_NAME ".tensors"
#define WFS_VIEW_SHARDS_NAME ".shards"

enum wfs_view_kind {
	WFS_VIEW_TENSORS,     /* directory .tensors */
	WFS_VIEW_TENSOR,      /* a file in it */
	WFS_VIEW_SHARDS,      /* directory .shards */
	WFS_VIEW_CUT,	      /* directory .shards/SIZE */
	WFS_VIEW_CUT_FILE,    /* a shard in it, or the index */
	WFS_VIEW_MIRROR,      /* a directory of the model, in or below a cut */
	WFS_VIEW_MIRROR_FILE, /* another file of the model, in or below a cut */
};

/* What an inode stands for. */
struct wfs_view_key {
	enum wfs_view_kind kind;
	enum wfs_tensor_form form; /* TENSOR */
	uint64_t ino;	     /* in the store: of the model directory; MIRROR*: of what is shown */
	uint64_t size;	     /* CUT, CUT_FILE: bytes of a shard at most */
	uint64_t serial;     /* TENSOR, CUT_FILE: of the model; else 0 */
	const char *variant; /* NULL: none */
	const char *name;    /* TENSOR: of the tensor; CUT_FILE: of the file; else NULL */
	size_t name_len;
};

struct wfs_view_node {
	struct wfs_node node;	 /* id: the inode's number, WFS_VIEW_INO and above */
	uint64_t nlookup;	 /* under the table's lock */
	struct wfs_view_key key; /* constant; owns its strings */
	struct stat st;		 /* constant where the bytes are */
};

struct wfs_views {
	pthread_mutex_t lock; /* a few instructions */
	struct wfs_table table;
};

int wfs_views_init(struct wfs_views *v);
void wfs_views_release(struct wfs_views *v);

/* ---- view.c: inodes ---- */

/* The inode of this key, with one more lookup; *ret_ino. -ENOMEM. */
int wfs_view_intern(struct wfs_views *v, const struct wfs_view_key *key, const struct stat *st,
	uint64_t *ret_ino);
void wfs_view_forget(struct wfs_views *v, uint64_t ino, uint64_t n);
/* What it stands for: valid as long as the kernel knows the inode, so during a request about it.
 * NULL: it does not. */
const struct wfs_view_node *wfs_view_node(struct wfs_views *v, uint64_t ino);
/* The number that stat shows: the same whatever state the model is in. */
uint64_t wfs_view_st_ino(const struct wfs_view_key *key);
/* The sizes of the cuts of a directory that the kernel knows, each once; the caller frees *ret. */
int wfs_view_sizes(
	struct wfs_views *v, uint64_t dir, const char *variant, uint64_t **ret, size_t *ret_n);

/* ---- view_find.c: what is in them ---- */

/* A child of a view, or of a directory of the store: its key and attributes. */
struct wfs_view_child {
	struct wfs_view_key key; /* strings are borrowed from `model`, `text` or the parent */
	struct stat st;		 /* size only where it was asked for */
	uint64_t real; /* not 0: the inode of the store that it is: a file that is written, or was
			  put */
	struct wfs_attr attr;	 /* of `real` */
	struct wfs_model *model; /* a reference, or NULL */
	char text[2 * NAME_MAX + 2];
};

void wfs_view_child_release(struct wfs_view_child *c);

/* In directory `dir` of the store: is `name` a view? 1, 0 or -errno. */
int wfs_view_find_root(
	struct wfs_driver *d, uint64_t dir, const char *name, struct wfs_view_child *ret);
/* No file can be made under this name: it would hide a view. */
bool wfs_view_is_reserved(const struct wfs_driver *d, const char *name);
/* Has a directory of the store shards? 1, 0 or -errno. */
int wfs_view_has_model(struct wfs_driver *d, uint64_t dir);
/* The child of this name, as thread `tid` is to see it. 0, -ENOENT, … */
int wfs_view_find(struct wfs_driver *d, const struct wfs_view_key *parent, const char *name,
	int32_t tid, struct wfs_view_child *ret);

/* A directory as it is when it is opened, or read from its beginning again. */
struct wfs_view_listing;
int wfs_view_list(
	struct wfs_driver *d, const struct wfs_view_key *dir, struct wfs_view_listing **ret);
/* It is read from its beginning: not for the first time, then as it is now. 0 or -errno. */
int wfs_view_list_begin(struct wfs_driver *d, struct wfs_view_listing *l);
void wfs_view_listing_free(struct wfs_view_listing *l);
/*
 * Entry number i, 0 and up: 1 with its name and child (with the size if `with_size`), 0 behind the
 * last; -ENOENT: this one has no file name, go on. `name` has NAME_MAX + 1 bytes.
 */
int wfs_view_entry(struct wfs_driver *d, struct wfs_view_listing *l, size_t i, bool with_size,
	char *name, struct wfs_view_child *ret);

/* The bytes of a file. -ESTALE: the model is another by now. */
int wfs_view_content(
	struct wfs_driver *d, const struct wfs_view_key *key, struct wfs_content **ret);

/* Attributes of a directory or a mirrored file as they are now, and of others as they were. */
int wfs_view_stat(struct wfs_driver *d, const struct wfs_view_node *node, struct stat *ret);

/* NAME.npy, NAME.safetensors: the tensor's name (`tensor` has NAME_MAX + 1 bytes). False: another
 * name. */
bool wfs_view_decode(
	const char *name, enum wfs_tensor_form *ret_form, char *tensor, size_t *ret_len);
/* The other way (`ret` has NAME_MAX + 1 bytes). False: longer than a file's name can be. */
bool wfs_view_encode(const char *name, size_t len, enum wfs_tensor_form form, char *ret);

/* ---- view_write.c: tensors that are written ---- */

/* Before anybody sees names of a directory of the store: its shards are what was put into them. */
void wfs_view_settle(struct wfs_driver *d, uint64_t dir);
/* The same for what waits anywhere: for the background, and at the end. */
void wfs_view_settle_all(struct wfs_driver *d);
/* The limit of a directory's shards was set: cut its model again. 0 or -errno. */
int wfs_view_reshard(struct wfs_driver *d, uint64_t dir);
/* Give up what was to be written by somebody who has not come. */
void wfs_view_tidy(struct wfs_driver *d);

struct wfs_handle;
/* After the open of a file of the store: is it one that is written, or was put? */
void wfs_view_opened(struct wfs_driver *d, struct wfs_handle *h);
/* close(2) of a handle that wrote such a file: put it. 0 or -errno for the program. */
int wfs_view_flush(struct wfs_driver *d, struct wfs_handle *h);
/* The end of its handle. */
void wfs_view_released(struct wfs_driver *d, struct wfs_handle *h);
/*
 * A program opens a tensor's file to write it: a file of the store is made for it, to which its
 * name leads now. -ESTALE on success.
 */
int wfs_view_open_to_write(fuse_req_t req, const struct wfs_view_key *key, mode_t mode, int flags);
/*
 * A file of the store is opened with these flags (-1: its size is to be changed). If it was put,
 * and its bytes are the model's, it must not be written: as above, or -EPERM. 0: go on.
 */
int wfs_view_open_put(fuse_req_t req, uint64_t ino, int flags);

/* Reply with a file of the store that stands under this name in the .tensors of a directory. */
void wfs_view_reply_real(fuse_req_t req, const struct wfs_attr *a, uint64_t dir,
	const char *variant, const char *name);

/* What was last wrong with something that was written there; *ret is to be freed. -ENODATA. */
int wfs_view_error(struct wfs_driver *d, uint64_t dir, const char *variant, char **ret);

/* Of files that were refused: the last ones. */
struct wfs_view_errors {
	pthread_mutex_t lock;
	struct {
		uint64_t dir;
		char *variant, *name, *text; /* NULL text: free */
	} list[64];
	size_t next;
};

void wfs_view_errors_init(struct wfs_view_errors *e);
void wfs_view_errors_release(struct wfs_view_errors *e);

/* ---- view_ops.c, view_refuse.c: requests for views, as those of driver.h ---- */

/* What the kernel is told of a child, and counts as a lookup. */
int wfs_view_fill_entry(
	struct wfs_driver *d, const struct wfs_view_child *c, struct fuse_entry_param *e);

/* In a directory of the store: true if `name` is a view, and the request has been answered. */
bool wfs_view_try_lookup(fuse_req_t req, uint64_t dir, const char *name);

void wfs_view_op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void wfs_view_op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void wfs_view_op_setattr(
	fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi);
void wfs_view_op_mknod(
	fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev);
void wfs_view_op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void wfs_view_op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void wfs_view_op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void wfs_view_op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name);
void wfs_view_op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
	const char *newname, unsigned int flags);
void wfs_view_op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname);
void wfs_view_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void wfs_view_op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
	struct fuse_file_info *fi);
void wfs_view_op_read(
	fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void wfs_view_op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void wfs_view_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void wfs_view_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void wfs_view_op_lseek(
	fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi);
void wfs_view_op_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in,
	struct fuse_file_info *fi_in, fuse_ino_t ino_out, off_t off_out,
	struct fuse_file_info *fi_out, size_t len, int flags);
void wfs_view_op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void wfs_view_op_readdir(
	fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void wfs_view_op_readdirplus(
	fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void wfs_view_op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void wfs_view_op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void wfs_view_op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
	size_t size, int flags);
void wfs_view_op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size);
void wfs_view_op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);
void wfs_view_op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);
void wfs_view_op_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd, void *arg,
	struct fuse_file_info *fi, unsigned int flags, const void *in, size_t in_size,
	size_t out_size);

#endif
