#include "lib/query.h"

const char *wfs_query_sql(enum wfs_query q)
{
	static const char *const sql[WFS_QUERY_COUNT] = {
#define WFS_QUERY_SQL(name, text) [WFS_Q_##name] = text,
		WFS_QUERIES(WFS_QUERY_SQL)
#undef WFS_QUERY_SQL
	};

	return sql[q];
}
