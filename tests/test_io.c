/* UTF-8, JSON, lines and files: what is read back, what is refused and with which words, and that every
 * allocation may fail without a leak. */
#include "io_helpers.h"

#include "io/json_write.h"
#include "io/jsonl.h"
#include "io/utf8.h"

#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

/* --- UTF-8 --- */

Test(utf8, tells_where_text_goes_wrong) {
    static const struct {
        const char *text;
        size_t valid;
    } cases[] = {
        {"plain", 5},
        {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x95\xaf", 9},
        {"a\x80", 1},
        {"a\xc0\xaf", 1},
        {"\xe0\x80\xaf", 0},
        {"\xed\xa0\x80", 0},
        {"\xf4\x90\x80\x80", 0},
        {"ab\xe2\x82", 2},
        {"\xf5\x80\x80\x80", 0},
        {"\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf", 10},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        cr_expect_eq(tpi_utf8_valid(cases[i].text, strlen(cases[i].text)), cases[i].valid, "case %zu", i);
}

/* --- JSON --- */

static tpi_json_doc *parse(const char *text) {
    tpi_json_doc *doc;
    cr_assert_eq(tpi_json_parse("t.json", 1, text, strlen(text), &doc), TP_OK, "%s", tp_error_message());
    return doc;
}

Test(json, refuses_what_is_not_json) {
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"", "t.json:1:1: expected a value, got nothing"},
        {" \n ", "t.json:2:2: expected a value"},
        {"{\"a\": 1} x", "t.json:1:10: text behind the value"},
        {"{\"a\": 1,}", "t.json:1:9: malformed"},
        {"[1 2]", "t.json:1:4"},
        {"{\n  \"a\" 1}", "t.json:2:7"},
        {"[1", "t.json:1:"},
        {"{\"a\": tru}", "t.json:1:7"},
        {"[01]", "t.json:1:2: a number with a leading zero"},
        {"[-]", "a minus sign without digits"},
        {"[1.]", "without digits behind its point"},
        {"[1e+]", "without digits in its exponent"},
        {"[.5]", "malformed"},
        {"[+1]", "malformed"},
        {"[NaN]", "malformed"},
        {"['a']", "malformed"},
        {"// c\n1", "malformed"},
        {"[\"a]", "t.json:1:2: a string that does not end"},
        {"[\"a\nb\"]", "t.json:1:4: a raw control character"},
        {"[\"\\x\"]", "malformed"},
        {"[\"\\u12G4\"]", "\\u without four hex digits"},
        {"[\"\\ud800\"]", "malformed"},
        {"[\"\\udc00\"]", "malformed"},
        {"\"\\", "a string that does not end"},
        {"[\"\xe9\"]", "t.json:1:3: a byte that is not UTF-8"},
        {"[\"\xc3\xa9\xff\"]", "t.json:1:4: a byte that is not UTF-8"},
        {"[1\v]", "a control character"},
        {"{\"a\": {\"b\": 1, \"c\": 2, \"b\": 3}}", "t.json: a: duplicate key 'b'"},
        {"[{}, {\"x\": 1, \"\\u0078\": 2}]", "t.json: [1]: duplicate key 'x'"},
        {"[1111111111222222222233333333334444444444555555555566666666667777]", "more than 63 characters"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        tpi_json_doc *doc;
        expect_message(tpi_json_parse("t.json", 1, cases[i].text, strlen(cases[i].text), &doc), TP_EFORMAT,
                       cases[i].part);
        cr_expect_null(doc);
    }
    cr_expect_eq(tpi_alloc_live(), 0);
}

Test(json, refuses_nul_and_depth) {
    tpi_json_doc *doc;
    expect_message(tpi_json_parse("t", 1, "[\"\\u0000\"]", 10, &doc), TP_EUNSUPPORTED, "t:1:3: a NUL");
    expect_message(tpi_json_parse("t", 1, "[1,\0]", 5, &doc), TP_EFORMAT, "t:1:4: a control character");

    size_t million = 1000000;
    char *text = malloc(million);
    cr_assert(text);
    memset(text, '[', million);
    expect_message(tpi_json_parse("t", 17, text, million, &doc), TP_EFORMAT, "t:17:129: nested too deep");
    memset(text + 128, ']', 128);
    cr_expect_eq(tpi_json_parse("t", 1, text, 256, &doc), TP_OK, "%s", tp_error_message());
    tpi_json_destroy(doc);
    free(text);
}

/* Every beginning of a document is refused, and none is read beyond its end (the sanitizer sees to that). */
Test(json, refuses_every_truncation) {
    const char *text = "{\"k\\n\": [1.5e-3, true, null, \"\\ud83d\\udd6f\\u00e9\"], \"m\": {\"x\": -0}}";
    for (size_t length = 0; length < strlen(text); length++) {
        char *copy = malloc(length ? length : 1);
        tpi_json_doc *doc;
        cr_assert(copy);
        memcpy(copy, text, length);
        cr_expect_eq(tpi_json_parse("t", 1, copy, length, &doc), TP_EFORMAT, "length %zu", length);
        free(copy);
    }
}

Test(json, finds_a_duplicate_among_many_keys, .timeout = 20) {
    size_t count = 150000, size = count * 16 + 64, length = 1;
    char *text = malloc(size);
    cr_assert(text);
    text[0] = '{';
    for (size_t i = 0; i < count; i++)
        length += (size_t)snprintf(text + length, size - length, "\"k%zu\":0,", i);
    tpi_json_doc *doc;
    size_t unique = (size_t)snprintf(text + length, size - length, "\"z\":0}") + length;
    cr_expect_eq(tpi_json_parse("t", 1, text, unique, &doc), TP_OK);
    cr_expect_eq(tpi_json_count(tpi_json_root(doc)), count + 1);
    tpi_json_destroy(doc);
    size_t twice = (size_t)snprintf(text + length, size - length, "\"k77\":0}") + length;
    expect_message(tpi_json_parse("t", 1, text, twice, &doc), TP_EFORMAT, "duplicate key 'k77'");
    free(text);
}

Test(json, gives_typed_values) {
    tpi_json_doc *doc =
        parse("{\"i\": -3, \"f\": 2.5, \"b\": true, \"s\": \"\\u00e9\\n\", \"n\": null, \"w\": 4.0,"
              " \"o\": {\"a\": [10, [20]]}}");
    tpi_json root = tpi_json_root(doc), value;
    int64_t whole;
    double number;
    bool flag;
    const char *text;
    cr_expect(tpi_json_get_int(root, "i", -5, 5, &whole) == TP_OK && whole == -3);
    cr_expect(tpi_json_get_int(root, "w", 0, 5, &whole) == TP_OK && whole == 4);
    cr_expect(tpi_json_get_number(root, "f", &number) == TP_OK && number == 2.5);
    cr_expect(tpi_json_get_bool(root, "b", &flag) == TP_OK && flag);
    cr_expect(tpi_json_get_string(root, "s", &text) == TP_OK && strcmp(text, "\xc3\xa9\n") == 0);
    cr_expect(tpi_json_get_int_or(root, "n", 0, 9, 7, &whole) == TP_OK && whole == 7);
    cr_expect(tpi_json_get_string_or(root, "none", "x", &text) == TP_OK && strcmp(text, "x") == 0);
    cr_expect(tpi_json_get_object_or(root, "none", &value) == TP_OK && !tpi_json_exists(value));
    cr_expect(tpi_json_get_bool_or(value, "deeper", true, &flag) == TP_OK && flag);
    cr_expect(tpi_json_get_object(root, "o", &value) == TP_OK);
    cr_expect(tpi_json_get_array(value, "a", &value) == TP_OK && tpi_json_count(value) == 2);
    value = tpi_json_next(tpi_json_first(value));
    cr_expect_eq(tpi_json_type_of(value), TPI_JSON_ARRAY);
    expect_message(tpi_json_as_string(tpi_json_first(value), &text), TP_EFORMAT,
                   "t.json: o.a[1][0]: expected a string, got 20");
    tpi_json_destroy(doc);
}

Test(json, says_what_it_expected) {
    tpi_json_doc *doc =
        parse("{\"a\": {\"b\": \"8\"}, \"h\": 1.5, \"big\": 9007199254740993e3, \"inf\": 1e999, \"l\": []}");
    tpi_json root = tpi_json_root(doc), a = tpi_json_find(root, "a"), value;
    int64_t whole;
    double number;
    bool flag;
    expect_message(tpi_json_get_number(a, "b", &number), TP_EFORMAT,
                   "t.json: a.b: expected a number, got the string \"8\"");
    expect_message(tpi_json_get_int(a, "c", 0, 1, &whole), TP_EFORMAT, "t.json: a: the key 'c' is missing");
    expect_message(tpi_json_get_int(root, "h", 0, 9, &whole), TP_EFORMAT, "h: expected an integer, got 1.5");
    expect_message(tpi_json_get_int(root, "big", 0, INT64_MAX, &whole), TP_EFORMAT,
                   "big: expected an integer");
    expect_message(tpi_json_get_number(root, "inf", &number), TP_EFORMAT,
                   "inf: expected a number that a double");
    expect_message(tpi_json_get_bool_or(root, "h", true, &flag), TP_EFORMAT,
                   "h: expected true or false, got 1.5");
    expect_message(tpi_json_get_object(root, "l", &value), TP_EFORMAT, "l: expected an object, got an array");
    expect_message(tpi_json_get_int(tpi_json_find(root, "l"), "x", 0, 1, &whole), TP_EFORMAT,
                   "l: expected an object");
    expect_message(tpi_json_get_int_or(a, "b", 0, 1, 0, &whole), TP_EFORMAT, "a.b: expected an integer");
    expect_message(tpi_json_fail(a, TP_EUNSUPPORTED, "no %d", 5), TP_EUNSUPPORTED, "t.json: a: no 5");
    tpi_json_destroy(doc);
}

/* --- Writing JSON --- */

static char *finish(tpi_json_writer *w) {
    char *text;
    cr_assert_eq(tpi_json_writer_finish(w, &text, NULL), TP_OK, "%s", tp_error_message());
    return text;
}

Test(json_write, indents_and_escapes) {
    tpi_json_writer w;
    tpi_json_writer_init(&w, 2);
    tpi_json_begin_object(&w, NULL);
    tpi_json_put_string(&w, "q\"", "a\\b\n\x01\xc3\xa9");
    tpi_json_begin_array(&w, "list");
    tpi_json_put_int(&w, NULL, INT64_MIN);
    tpi_json_put_bool(&w, NULL, false);
    tpi_json_put_string(&w, NULL, NULL);
    tpi_json_end(&w);
    tpi_json_begin_object(&w, "empty");
    tpi_json_end(&w);
    tpi_json_end(&w);
    char *text = finish(&w);
    cr_expect_str_eq(
        text, "{\n  \"q\\\"\": \"a\\\\b\\n\\u0001\xc3\xa9\",\n  \"list\": [\n    -9223372036854775808,\n"
              "    false,\n    null\n  ],\n  \"empty\": {}\n}");
    tpi_free(text);
}

Test(json_write, numbers_read_back_to_the_same_bits) {
    static const double values[] = {
        0.1,           1.0 / 3,           -0.0, 1e15, 5e-324, 1.7976931348623157e308, 2.586, 1e-4, 1e22,
        123456789.125, 9007199254740992.0};
    for (size_t i = 0; i < COUNT(values); i++) {
        tpi_json_writer w;
        double back;
        tpi_json_writer_init(&w, 0);
        tpi_json_put_number(&w, NULL, values[i]);
        char *text = finish(&w);
        tpi_json_doc *doc = parse(text);
        cr_expect(tpi_json_as_number(tpi_json_root(doc), &back) == TP_OK && memcmp(&back, &values[i], 8) == 0,
                  "%.17g was written as %s", values[i], text);
        tpi_json_destroy(doc);
        tpi_free(text);
    }
    tpi_json_writer w;
    tpi_json_writer_init(&w, 0);
    tpi_json_begin_array(&w, NULL);
    tpi_json_put_float(&w, NULL, 2.586f);
    tpi_json_put_number(&w, NULL, NAN);
    tpi_json_put_number(&w, NULL, 1e15);
    tpi_json_end(&w);
    char *text = finish(&w);
    cr_expect_str_eq(text, "[2.586, null, 1000000000000000]");
    tpi_free(text);
}

Test(json_write, first_error_sticks) {
    char *text;
    tpi_json_writer w;
    tpi_json_writer_init(&w, 0);
    tpi_json_begin_array(&w, NULL);
    tpi_json_put_string(&w, NULL, "\xff");
    tpi_json_put_int(&w, "key", 1);
    tpi_json_end(&w);
    tpi_fail(TP_EIO, "another error");
    expect_message(tpi_json_writer_finish(&w, &text, NULL), TP_EFORMAT, "not UTF-8");
    cr_expect_null(text);

    tpi_json_writer_init(&w, 0);
    tpi_json_begin_object(&w, NULL);
    tpi_json_put_int(&w, NULL, 1);
    expect_message(tpi_json_writer_finish(&w, &text, NULL), TP_EINTERNAL, "without a key");
    tpi_json_writer_init(&w, 0);
    tpi_json_begin_object(&w, NULL);
    expect_message(tpi_json_writer_finish(&w, &text, NULL), TP_EINTERNAL, "before the value was whole");
    cr_expect_eq(tpi_alloc_live(), 0);
}

static tp_status json_round_trip(void) {
    static const char text[] = "{\"a\": [1, 2.5, \"x\\ty\", {\"b\": {}, \"c\": [null, true]}], \"d\": false}";
    tpi_json_doc *doc;
    tpi_json_writer w;
    char *again;
    TPI_TRY(tpi_json_parse("t", 1, text, strlen(text), &doc));
    tpi_json_writer_init(&w, 0);
    tpi_json_put_value(&w, NULL, tpi_json_root(doc));
    tp_status status = tpi_json_writer_finish(&w, &again, NULL);
    if (status == TP_OK) cr_expect_str_eq(again, text);
    tpi_free(again);
    tpi_json_destroy(doc);
    return status;
}

Test(json, every_allocation_may_fail) {
    sweep(json_round_trip);
}

/* --- Lines --- */

Test(lines, splits_as_editors_do) {
    static const char text[] = "\xef\xbb\xbfone\r\n\ntwo\rx\n\xef\xbb\xbf\r\nlast";
    static const char *const wanted[] = {"one", "", "two\rx", "\xef\xbb\xbf", "last"};
    tpi_lines lines;
    const char *line;
    size_t length, count = 0;
    tpi_lines_init(&lines, text, strlen(text));
    while (tpi_lines_next(&lines, &line, &length)) {
        cr_assert_lt(count, COUNT(wanted));
        cr_expect(length == strlen(wanted[count]) && memcmp(line, wanted[count], length) == 0, "line %zu",
                  count);
        cr_expect_eq(lines.number, ++count);
    }
    cr_expect_eq(count, COUNT(wanted));
    tpi_lines_init(&lines, NULL, 0);
    cr_expect_not(tpi_lines_next(&lines, &line, &length));
}

Test(lines, names_the_broken_line_and_goes_on) {
    static const char text[] = "{\"a\": 1}\r\n  \n{\"a\": }\n{\"a\": 4}";
    tpi_lines lines;
    tpi_json_doc *doc;
    tpi_lines_init(&lines, text, strlen(text));
    cr_expect(tpi_jsonl_next(&lines, "d.jsonl", &doc) == TP_OK && doc);
    tpi_json_destroy(doc);
    expect_message(tpi_jsonl_next(&lines, "d.jsonl", &doc), TP_EFORMAT, "d.jsonl:3:7: malformed");
    cr_expect(tpi_jsonl_next(&lines, "d.jsonl", &doc) == TP_OK && doc && lines.number == 4);
    tpi_json_destroy(doc);
    cr_expect(tpi_jsonl_next(&lines, "d.jsonl", &doc) == TP_OK && !doc);
}

/* --- Files --- */

TestSuite(file, .init = make_directory, .fini = remove_directory);

Test(file, replaces_whole_or_not_at_all) {
    const char *path = in_directory("f");
    tpi_atomic_file *file;
    put_file(path, "old", 3);
    cr_assert_eq(chmod(path, 0640), 0);
    cr_assert_eq(tpi_atomic_open(path, &file), TP_OK);
    cr_expect_eq(tpi_atomic_write(file, "new", 3), TP_OK);
    expect_file(path, "old");
    tpi_atomic_abort(file);
    expect_file(path, "old");
    cr_expect_eq(entries(directory), 1);

    put_file(path, "newer", 5);
    struct stat info;
    expect_file(path, "newer");
    cr_expect(stat(path, &info) == 0 && (info.st_mode & 0777) == 0640);
    cr_expect_eq(entries(directory), 1);
    cr_expect_eq(tpi_alloc_live(), 0);
}

Test(file, writes_more_than_its_buffer) {
    const char *path = in_directory("large");
    size_t piece = 30000, pieces = 20, size;
    char *data = calloc(piece, pieces), *back;
    tpi_atomic_file *file;
    cr_assert(data);
    for (size_t i = 0; i < piece * pieces; i++) data[i] = (char)(i * 31 >> 3);
    cr_assert_eq(tpi_atomic_open(path, &file), TP_OK);
    for (size_t i = 0; i < 10; i++) cr_expect_eq(tpi_atomic_write(file, data + i * piece, piece), TP_OK);
    cr_expect_eq(tpi_atomic_write(file, data + 10 * piece, 10 * piece), TP_OK);
    cr_assert_eq(tpi_atomic_commit(file), TP_OK);
    cr_assert_eq(tpi_file_read(path, 1 << 20, &back, &size), TP_OK);
    cr_expect(size == piece * pieces && memcmp(back, data, size) == 0);
    tpi_free(back);
    free(data);
}

Test(file, keeps_a_symbolic_link) {
    const char *target = in_directory("target"), *link = in_directory("link");
    struct stat info;
    put_file(target, "1", 1);
    cr_assert_eq(symlink("target", link), 0);
    put_file(link, "2", 1);
    expect_file(target, "2");
    cr_expect(lstat(link, &info) == 0 && S_ISLNK(info.st_mode));
}

Test(file, reports_a_full_disk) {
    tpi_atomic_file *file;
    static char zeros[200000];
    expect_message(tpi_file_write("/dev/full", "x", 1), TP_EIO, "cannot write '/dev/full': No space left");
    expect_message(tpi_file_append("/dev/full", "x", 1), TP_EIO, "No space left");
    cr_assert_eq(tpi_atomic_open("/dev/full", &file), TP_OK);
    expect_message(tpi_atomic_write(file, zeros, sizeof zeros), TP_EIO, "No space left");
    expect_message(tpi_atomic_write(file, "x", 1), TP_EIO, "an earlier write failed");
    expect_message(tpi_atomic_commit(file), TP_EIO, "an earlier write failed");
    cr_expect_eq(tpi_alloc_live(), 0);
}

/* A limit on the size of files ends a write midway, as a full disk does. */
Test(file, leaves_the_old_file_when_a_write_ends_midway) {
    static char zeros[200000];
    struct rlimit limit = {100000, 100000};
    put_file(in_directory("kept"), "old", 3);
    cr_assert(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    expect_message(tpi_file_write(in_directory("kept"), zeros, sizeof zeros), TP_EIO, "File too large");
    expect_file(in_directory("kept"), "old");
    cr_expect_eq(tpi_file_append(in_directory("log"), "line\n", 5), TP_OK);
    expect_message(tpi_file_append(in_directory("log"), zeros, sizeof zeros), TP_EIO, "File too large");
    expect_file(in_directory("log"), "line\n");
    cr_expect_eq(entries(directory), 2);
}

Test(file, reports_what_cannot_be_opened) {
    tpi_atomic_file *file;
    tpi_map *map;
    char *data;
    size_t size;
    expect_message(tpi_atomic_open(in_directory("no/such"), &file), TP_EIO, "No such file");
    expect_message(tpi_atomic_open(directory, &file), TP_EIO, "Is a directory");
    expect_message(tpi_map_open(in_directory("none"), &map), TP_EIO, "No such file");
    expect_message(tpi_map_open(directory, &map), TP_EIO, "not a regular file");
    cr_assert_eq(mkfifo(in_directory("pipe"), 0600), 0);
    expect_message(tpi_map_open(in_directory("pipe"), &map), TP_EIO, "not a regular file");
    expect_message(tpi_file_read(directory, 9, &data, &size), TP_EIO, "Is a directory");
    put_file(in_directory("ten"), "0123456789", 10);
    expect_message(tpi_file_read(in_directory("ten"), 9, &data, &size), TP_EFORMAT, "larger than 9 bytes");
    cr_expect_eq(tpi_file_read(in_directory("ten"), 10, &data, &size), TP_OK);
    tpi_free(data);
}

Test(file, maps_and_appends) {
    tpi_map *map;
    const char *path = in_directory("log");
    cr_expect_eq(tpi_file_append(path, "", 0), TP_OK);
    cr_assert_eq(tpi_map_open(path, &map), TP_OK);
    cr_expect(tpi_map_size(map) == 0 && tpi_map_data(map));
    tpi_map_close(map);
    cr_expect_eq(tpi_file_append(path, "one\n", 4), TP_OK);
    cr_expect_eq(tpi_file_append(path, "two\n", 4), TP_OK);
    cr_assert_eq(tpi_map_open(path, &map), TP_OK);
    cr_expect(tpi_map_size(map) == 8 && memcmp(tpi_map_data(map), "one\ntwo\n", 8) == 0);
    tpi_map_advise(map, 3, SIZE_MAX, TPI_MAP_WILLNEED);
    tpi_map_close(map);
}

Test(file, joins_and_splits_paths) {
    static const struct {
        const char *path, *parent;
    } cases[] = {{"a/b", "a"}, {"a", "."}, {"/a", "/"}, {"a/b/", "a"}, {"/", "/"}, {"a//b", "a"}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        char *parent = tpi_path_parent(cases[i].path);
        cr_expect_str_eq(parent, cases[i].parent, "parent of %s is %s", cases[i].path, parent);
        tpi_free(parent);
    }
    char *joined = tpi_path_join("a/", "b"), *plain = tpi_path_join("a", "b");
    cr_expect(strcmp(joined, "a/b") == 0 && strcmp(plain, "a/b") == 0);
    tpi_free(joined);
    tpi_free(plain);
}

Test(file, replaces_a_directory) {
    const char *path = in_directory("sub/checkpoint");
    char name[512];
    for (int round = 0; round < 3; round++) {
        tpi_atomic_dir *dir;
        cr_assert_eq(tpi_atomic_dir_open(in_directory("sub/checkpoint/"), &dir), TP_OK, "%s",
                     tp_error_message());
        snprintf(name, sizeof name, "%s/only-%d", tpi_atomic_dir_path(dir), round);
        put_file(name, "x", 1);
        if (round == 2) {
            tpi_atomic_dir_abort(dir);
            continue;
        }
        cr_assert_eq(tpi_atomic_dir_commit(dir), TP_OK, "%s", tp_error_message());
        snprintf(name, sizeof name, "%s/only-%d", path, round);
        cr_expect(tpi_path_exists(name));
        cr_expect_eq(entries(path), 1);
    }
    cr_expect(tpi_path_exists(in_directory("sub/checkpoint/only-1")), "an abort leaves the old directory");
    cr_expect_eq(entries(in_directory("sub")), 1);

    tpi_atomic_dir *dir;
    put_file(in_directory("plain"), "x", 1);
    cr_assert_eq(tpi_atomic_dir_open(in_directory("plain"), &dir), TP_OK);
    expect_message(tpi_atomic_dir_commit(dir), TP_EIO, "not a directory");
    cr_expect_eq(entries(directory), 2);
}

/* Files of one make: the last of them stands beside its own, at any moment. */
Test(file, moves_files_over_others) {
    for (int round = 0; round < 2; round++) {
        tpi_atomic_dir *dir;
        char path[512];
        cr_assert_eq(tpi_atomic_dir_open(in_directory("set/new"), &dir), TP_OK, "%s", tp_error_message());
        for (int i = 0; i < 3; i++) {
            snprintf(path, sizeof path, "%s/%c", tpi_atomic_dir_path(dir), 'a' + i);
            put_file(path, round ? "two" : "one", 3);
        }
        cr_assert_eq(tpi_atomic_dir_move_files(dir, in_directory("set"), "b"), TP_OK, "%s",
                     tp_error_message());
        char **names;
        size_t count;
        cr_assert_eq(tpi_dir_list(in_directory("set"), &names, &count), TP_OK);
        cr_expect_eq(count, 3, "nothing temporary is left");
        tpi_dir_list_free(names, count);
    }
    char *data;
    size_t size;
    cr_assert_eq(tpi_file_read(in_directory("set/b"), 9, &data, &size), TP_OK);
    cr_expect_str_eq(data, "two");
    tpi_free(data);
}

/* What cannot be moved is not thrown away. */
Test(file, keeps_files_that_could_not_be_moved) {
    tpi_atomic_dir *dir;
    char path[512], *kept;
    cr_assert_eq(tpi_dir_create(in_directory("set/a/deep")), TP_OK);
    put_file(in_directory("set/b"), "old", 3);
    cr_assert_eq(tpi_atomic_dir_open(in_directory("set/new"), &dir), TP_OK);
    kept = tpi_strdup(tpi_atomic_dir_path(dir));
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%c", kept, 'a' + i);
        put_file(path, "new", 3);
    }
    expect_message(tpi_atomic_dir_move_files(dir, in_directory("set"), "b"), TP_EIO, kept);
    cr_expect(tpi_path_exists(path));
    cr_expect_not(tpi_path_exists(in_directory("set/b")), "the old one vouches for nothing");
    tpi_free(kept);
}

Test(file, removes_what_killed_processes_left) {
    static const char *const left[] = {"w/best.tmp-12-0", "w/a.tmp-1-2.tmp-33-4"};
    static const char *const kept[] = {"w/best", "w/a.tmp-", "w/a.tmp-1-", "w/a.tmp-1-2x", "w/b.tmp-1"};
    cr_assert_eq(tpi_dir_remove_temporaries(in_directory("nowhere")), TP_OK);
    cr_assert_eq(tpi_dir_create(in_directory("w/step.tmp-5-6/deep")), TP_OK);
    for (size_t i = 0; i < COUNT(left); i++) put_file(in_directory(left[i]), "x", 1);
    for (size_t i = 0; i < COUNT(kept); i++) put_file(in_directory(kept[i]), "x", 1);
    cr_assert_eq(tpi_dir_remove_temporaries(in_directory("w")), TP_OK, "%s", tp_error_message());
    char **names;
    size_t count;
    cr_assert_eq(tpi_dir_list(in_directory("w"), &names, &count), TP_OK);
    cr_expect_eq(count, COUNT(kept));
    for (size_t i = 0; i < COUNT(kept); i++) cr_expect(tpi_path_exists(in_directory(kept[i])), "%s", kept[i]);
    tpi_dir_list_free(names, count);
}

Test(file, a_directory_is_locked_once) {
    int first, second;
    cr_assert_eq(tpi_dir_create(in_directory("mine")), TP_OK);
    cr_assert_eq(tpi_dir_lock(in_directory("mine"), &first), TP_OK);
    if (first < 0) cr_skip_test("this file system has no locks");
    expect_message(tpi_dir_lock(in_directory("mine"), &second), TP_EINVAL, "another process");
    cr_expect_eq(second, -1);
    tpi_dir_unlock(second);
    tpi_dir_unlock(first);
    cr_assert_eq(tpi_dir_lock(in_directory("mine"), &second), TP_OK);
    tpi_dir_unlock(second);
    expect_message(tpi_dir_lock(in_directory("nowhere"), &second), TP_EIO, "nowhere");
}

Test(file, removal_stays_inside) {
    static const char *const never[] = {"/", "//", ".", "..", "", "a/..", "a/./"};
    for (size_t i = 0; i < COUNT(never); i++)
        expect_message(tpi_dir_remove(never[i]), TP_EINVAL, "will not remove");
    cr_assert_eq(tpi_dir_create(in_directory("kept")), TP_OK);
    put_file(in_directory("kept/file"), "x", 1);
    cr_assert_eq(tpi_dir_create(in_directory("gone/deep/er")), TP_OK);
    put_file(in_directory("gone/deep/file"), "x", 1);
    cr_assert_eq(symlink("../../kept", in_directory("gone/deep/link")), 0);
    cr_expect_eq(tpi_dir_remove(in_directory("gone")), TP_OK, "%s", tp_error_message());
    cr_expect_not(tpi_path_exists(in_directory("gone")));
    expect_file(in_directory("kept/file"), "x");
    cr_expect_eq(tpi_dir_remove(in_directory("gone")), TP_OK);
    expect_message(tpi_dir_remove(in_directory("kept/file")), TP_EIO, "not a directory");
    expect_message(tpi_dir_create(in_directory("kept/file/x")), TP_EIO, "cannot create the directory");
}

/* What cannot be removed whole, for it is too deep, has at least lost its name. */
Test(file, a_directory_is_removed_under_another_name) {
    char deep[1024] = "gone";
    while (strlen(deep) < 4 + 2 * 80) strcat(deep, "/d");
    cr_assert_eq(tpi_dir_create(in_directory("gone/short")), TP_OK);
    cr_expect_eq(tpi_atomic_dir_remove(in_directory("gone")), TP_OK, "%s", tp_error_message());
    cr_expect_eq(entries(directory), 0);
    cr_expect_eq(tpi_atomic_dir_remove(in_directory("gone")), TP_OK, "%s", tp_error_message());
    cr_assert_eq(tpi_dir_create(in_directory(deep)), TP_OK, "%s", tp_error_message());
    expect_message(tpi_atomic_dir_remove(in_directory("gone")), TP_EIO, "more than 64 levels");
    cr_expect_not(tpi_path_exists(in_directory("gone")));
    cr_expect_eq(entries(directory), 1);
    char command[64];
    snprintf(command, sizeof command, "rm -r %s/*", directory);
    cr_assert_eq(system(command), 0);
}

static tp_status file_work(void) {
    char *data;
    size_t size;
    tpi_atomic_dir *dir;
    TPI_TRY(tpi_file_write(in_directory("f"), "text", 4));
    TPI_TRY(tpi_file_read(in_directory("f"), 100, &data, &size));
    tpi_free(data);
    TPI_TRY(tpi_atomic_dir_open(in_directory("d"), &dir));
    return tpi_atomic_dir_commit(dir);
}

Test(file, every_allocation_may_fail) {
    sweep(file_work);
    cr_expect_eq(entries(directory), 2, "temporary files are left");
}
