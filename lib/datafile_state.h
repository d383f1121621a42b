/* datafile_state.h - data_file.state, as lib/schema.sql describes it. */
#ifndef WFS_DATAFILE_STATE_H
#define WFS_DATAFILE_STATE_H

enum wfs_data_state {
	WFS_DATA_STAGING = 0,
	WFS_DATA_PACK = 1,
	WFS_DATA_DOOMED = 2,
	WFS_DATA_FILLING = 3,
};

#endif
