-- The store's database: names, attributes, manifests, objects: everything but
-- the bytes of large objects, which are in data/xx/ID beside it.
--
-- This file is the specification of the store, format version 5. It can be
-- read with sqlite3(1) at any time, also while the store is mounted:
--
--     sqlite3 -readonly STORE/weightfs.db
--
-- PRAGMA application_id is 0x57744653 ("WtFS"); PRAGMA user_version is the
-- format version. A program that does not know the version refuses the store.
--
-- Conventions. Times are nanoseconds since 1970 (UTC), signed. Sizes, lengths
-- and offsets are bytes. Names and xattr names are BLOBs: any bytes but NUL,
-- and '/' in names. A count of references ("refs") changes in the transaction
-- that makes or drops the reference.

-- One row for each setting of the store itself.
--   reserved keys: 'clean' 1 after an orderly unmount, 0 while mounted
--                  'boot_id' the kernel's boot id when it was last mounted
--                  'created_ns' when the store was made
--                  'recovered_ns', and '_unlinked', '_dirty', '_reported' for '_ns': what the last
--                  recovery met (lib/recover.h)
CREATE TABLE meta (
	key   TEXT PRIMARY KEY,
	value
) WITHOUT ROWID;

-- An immutable byte string. It has exactly one extent: either (data_file,
-- offset), length bytes long, or a row of object_bytes.
CREATE TABLE object (
	id        INTEGER PRIMARY KEY AUTOINCREMENT, -- never reused
	digest    BLOB    NOT NULL,     -- XXH3-128 of the bytes, canonical (big-endian) form, 16 bytes
	ordinal   INTEGER NOT NULL,     -- 0; counts up for different bytes with one digest
	length    INTEGER NOT NULL CHECK (length > 0),
	refs      INTEGER NOT NULL CHECK (refs >= 0), -- rows of manifest_object that name it; 0 only inside a transaction
	data_file INTEGER REFERENCES data_file (id),  -- NULL: the bytes are in object_bytes
	offset    INTEGER,              -- in the data file; NULL with data_file
	CHECK ((data_file IS NULL) = (offset IS NULL)),
	CHECK (length(digest) = 16),
	UNIQUE (digest, ordinal)
);
CREATE INDEX object_by_place ON object (data_file, offset) WHERE data_file IS NOT NULL;

-- The bytes of small objects.
CREATE TABLE object_bytes (
	object INTEGER PRIMARY KEY REFERENCES object (id),
	bytes  BLOB NOT NULL
);

-- The content of a sealed file: objects one behind the other, from offset 0
-- to its size. Equal contents have one manifest.
CREATE TABLE manifest (
	id      INTEGER PRIMARY KEY AUTOINCREMENT, -- never reused
	digest  BLOB,                 -- XXH3-128 of its object ids (64-bit little endian, in order); NULL once refs is 0
	size    INTEGER NOT NULL CHECK (size > 0), -- sum of the objects' lengths
	objects INTEGER NOT NULL CHECK (objects > 0), -- number of rows in manifest_object
	refs    INTEGER NOT NULL CHECK (refs >= 0), -- inodes that name it; at 0 it is taken apart in the background
	-- A whole copy: a pack of exactly this content, from offset 0. It is read in
	-- place of the objects' extents, and nothing of it is punched out. NULL: the
	-- extents are what there is (and may be a whole file themselves).
	whole   INTEGER REFERENCES data_file (id),
	shared  INTEGER NOT NULL DEFAULT 0 CHECK (shared >= 0), -- bytes of the whole copy in disk blocks of other extents
	-- 1: its objects live one behind the other in one data file, from offset 0, so
	-- that the first of them says where all of it is. 0: one has to look
	solid   INTEGER NOT NULL DEFAULT 0 CHECK (solid IN (0, 1))
);
CREATE INDEX manifest_by_digest ON manifest (digest) WHERE digest IS NOT NULL;
CREATE INDEX manifest_dead ON manifest (id) WHERE refs = 0;
CREATE UNIQUE INDEX manifest_by_whole ON manifest (whole) WHERE whole IS NOT NULL;

CREATE TABLE manifest_object (
	manifest INTEGER NOT NULL REFERENCES manifest (id),
	seq      INTEGER NOT NULL,    -- 0, 1, 2, … in file order
	object   INTEGER NOT NULL REFERENCES object (id),
	PRIMARY KEY (manifest, seq)
) WITHOUT ROWID;

-- A file data/xx/ID, where ID is the id as 16 hex digits and xx its last two.
CREATE TABLE data_file (
	id    INTEGER PRIMARY KEY AUTOINCREMENT, -- not reused, but by a row that goes from doomed to staging
	state INTEGER NOT NULL,
	-- 0 staging: belongs to the one dirty inode that names it
	-- 1 pack:    sealed; no byte in the extent of an object, or of a whole copy, changes
	-- 2 doomed:  nothing in it is alive; the file is removed, then the row; or
	--            it is emptied, and staging of another inode later
	-- 3 filling: an unseal is copying into it; doomed after a crash
	holes INTEGER NOT NULL DEFAULT 0
	-- of a pack: counts up with each range that died in it, back to 0 when
	-- all ranges between its objects are known to be punched out. Of a whole
	-- copy nothing is, for as long as it is one
);
CREATE INDEX data_file_work ON data_file (state) WHERE state >= 2 OR holes > 0;

-- A file, directory, symbolic link, fifo, socket or device. 1 is the root.
CREATE TABLE inode (
	ino       INTEGER PRIMARY KEY AUTOINCREMENT, -- st_ino, never reused
	mode      INTEGER NOT NULL,     -- st_mode, type included
	uid       INTEGER NOT NULL,
	gid       INTEGER NOT NULL,
	nlink     INTEGER NOT NULL CHECK (nlink >= 0), -- directory: 2 + subdirectories. 0: unlinked but still in use
	rdev      INTEGER NOT NULL DEFAULT 0,
	size      INTEGER NOT NULL DEFAULT 0, -- regular: of a dirty file see its data file; symlink: bytes of target
	blocks    INTEGER NOT NULL DEFAULT 0, -- st_blocks (512 bytes) of a sealed file when it was written: holes stay visible
	atime_ns  INTEGER NOT NULL,
	mtime_ns  INTEGER NOT NULL,     -- of a dirty file the data file's mtime counts
	ctime_ns  INTEGER NOT NULL,     -- of a dirty file the later of this and the data file's ctime
	btime_ns  INTEGER NOT NULL,
	target    BLOB,                 -- symbolic link: where it points. Dirty file that was made durable: its size and
	                                -- mtime_ns then, each 64-bit little endian; after a power cut it is whole if they still are so
	-- Content of a regular file. Dirty: data_file is set. Sealed: manifest is
	-- set. Neither: sealed and empty. Both never.
	manifest  INTEGER REFERENCES manifest (id),
	data_file INTEGER REFERENCES data_file (id),
	-- The gate's last verdict. 0 none taken, 1 valid, 2 opaque, 3 incomplete, 4 wrong, 5 damaged
	verdict   INTEGER NOT NULL DEFAULT 0,
	reason    TEXT,                 -- stable name of the reason where verdict is 3, 4 or 5; of 1: 'warning' or NULL.
	                                -- Of a dirty file, whatever its verdict, 'sync-failed': the disk failed to write it
	detail    TEXT,                 -- the reason as a sentence
	CHECK (manifest IS NULL OR data_file IS NULL)
);
CREATE INDEX inode_dirty ON inode (data_file) WHERE data_file IS NOT NULL;
CREATE INDEX inode_orphan ON inode (ino) WHERE nlink = 0;
CREATE INDEX inode_reported ON inode (verdict) WHERE reason IS NOT NULL;
CREATE INDEX inode_by_manifest ON inode (manifest) WHERE manifest IS NOT NULL;

-- A name in a directory. "." and ".." are not stored.
CREATE TABLE dirent (
	id     INTEGER PRIMARY KEY AUTOINCREMENT, -- order and offset of readdir; never reused
	parent INTEGER NOT NULL REFERENCES inode (ino),
	name   BLOB    NOT NULL,
	ino    INTEGER NOT NULL REFERENCES inode (ino),
	UNIQUE (parent, name)
);
CREATE INDEX dirent_by_parent ON dirent (parent);
CREATE INDEX dirent_by_ino ON dirent (ino);

CREATE TABLE xattr (
	ino   INTEGER NOT NULL REFERENCES inode (ino),
	name  BLOB NOT NULL,
	value BLOB NOT NULL,
	PRIMARY KEY (ino, name)
) WITHOUT ROWID;

-- What was written to the tensors of a model directory (DIR/.tensors, docs/views.md) and
-- is not in its shards yet. They are made anew before anybody looks at them again, in
-- one transaction with the removal of these rows.
CREATE TABLE tensor (
	dir     INTEGER NOT NULL REFERENCES inode (ino), -- the model directory
	variant BLOB    NOT NULL,     -- UTF-8; empty: none
	name    BLOB    NOT NULL,     -- of the tensor, UTF-8; may be empty
	ino     INTEGER REFERENCES inode (ino), -- the file that has its bytes; counts in its nlink. NULL: the tensor is to be removed
	form    INTEGER NOT NULL,     -- of that file: 0 npy, 1 safetensors
	dtype   TEXT    NOT NULL,     -- as in a header; empty with ino NULL
	shape   TEXT    NOT NULL,     -- JSON, "[2, 3]"
	start   INTEGER NOT NULL CHECK (start >= 0),  -- its bytes in the file are
	length  INTEGER NOT NULL CHECK (length >= 0), -- [start, start + length)
	PRIMARY KEY (dir, variant, name)
) WITHOUT ROWID;
CREATE INDEX tensor_by_ino ON tensor (ino) WHERE ino IS NOT NULL;

-- Objects whose bytes are known to be lost, or not those of their digest: no byte of
-- such a place is given to anybody. The row goes with the object, or when its bytes are
-- right again: repaired, saved anew, or read and found right (weightfs verify).
CREATE TABLE damage (
	object   INTEGER PRIMARY KEY REFERENCES object (id),
	reason   INTEGER NOT NULL, -- 1 other bytes than those of its digest, 2 the disk cannot read them, 3 they are not there
	found_ns INTEGER NOT NULL  -- when
);
