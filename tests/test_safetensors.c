/* Safetensors: round trips, models in shards, and every way in which a file may be wrong. */
#include "io_helpers.h"

#include "io/safetensors.h"

/* --- One file in memory --- */

/* Header, then `data_size` bytes; the length field says `length`, or the header's own length if that is
 * negative. */
static size_t make_file(char *buffer, const char *header, size_t data_size, int64_t length) {
    uint64_t said = length < 0 ? strlen(header) : (uint64_t)length;
    memcpy(buffer, &said, 8);
    memcpy(buffer + 8, header, strlen(header));
    memset(buffer + 8 + strlen(header), 7, data_size);
    return 8 + strlen(header) + data_size;
}

static tp_status parse_header(const char *header, size_t data_size, int64_t length) {
    char buffer[4096];
    size_t size = make_file(buffer, header, data_size, length);
    char *exact = malloc(size);
    tpi_safetensors *st;
    memcpy(exact, buffer, size);
    tp_status status = tpi_safetensors_parse("m.st", exact, size, &st);
    cr_expect_eq(status == TP_OK, st != NULL);
    tpi_safetensors_release(st);
    free(exact);
    return status;
}

#define ENTRY(name, dtype, shape, offsets)                                                                   \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" offsets "]}"

Test(safetensors, accepts_what_is_legal) {
    static const struct {
        const char *header;
        size_t size;
    } cases[] = {
        {"{}", 0},
        {"{}   ", 0},
        {"{" ENTRY("a", "F32", "", "0,4") "}", 4},
        {"{" ENTRY("a", "F32", "2,0,3", "0,0") "}", 0},
        {"{" ENTRY("z", "F32", "0", "4,4") "," ENTRY("b", "BF16", "2", "0,4") "," ENTRY("c", "U8", "1",
                                                                                        "4,5") "}",
         5},
        {"{\"__metadata__\":{\"format\":\"pt\"}," ENTRY("a", "I64", "1,1,1,1,1,1,1,1", "0,8") "}", 8},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"extra\":0}}", 1},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        cr_expect_eq(parse_header(cases[i].header, cases[i].size, -1), TP_OK, "%s", tp_error_message());
}

Test(safetensors, refuses_what_is_not) {
    static const struct {
        const char *header;
        size_t size;
        int64_t length;
        const char *part;
    } cases[] = {
        {"", 0, -1, "does not begin with '{'"},
        {" {}", 0, -1, "does not begin with '{'"},
        {"[]", 0, -1, "does not begin with '{'"},
        {"{}", 0, 3, "m.st: header length 3, but only 2 bytes follow"},
        {"{}", 0, 100000001, "the limit is 100000000"},
        {"{}", 0, INT64_MAX, "the limit is 100000000"},
        {"{}", 1, -1, "the tensors end at offset 0 of the data, the file at 1"},
        {"{} x", 0, -1, "m.st:1:4: text behind the value"},
        {"{\"a\xff\":1}", 0, -1, "not UTF-8"},
        {"{\"a\":1}", 0, -1, "m.st: a: expected an object, got 1"},
        {"{\"a\":{\"shape\":[],\"data_offsets\":[0,0]}}", 0, -1, "a: the key 'dtype' is missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,0]}}", 0, -1, "a: the key 'shape' is missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 0, -1, "a: the key 'data_offsets' is missing"},
        {"{" ENTRY("a", "F33", "", "0,4") "}", 4, -1, "a: unknown dtype 'F33'"},
        {"{" ENTRY("a", "F32", "-1", "0,4") "}", 4, -1, "a.shape[0]: expected an integer in [0"},
        {"{" ENTRY("a", "F32", "1.5", "0,4") "}", 4, -1, "a.shape[0]: expected an integer, got 1.5"},
        {"{" ENTRY("a", "F32", "\"1\"", "0,4") "}", 4, -1, "a.shape[0]: expected an integer"},
        {"{" ENTRY("a", "F32", "1,1,1,1,1,1,1,1,1", "0,4") "}", 4, -1, "9 dimensions, the limit is 8"},
        {"{" ENTRY("a", "F32", "4294967296,4294967296", "0,0") "}", 0, -1,
         "a.shape: the size in bytes overflows"},
        {"{" ENTRY("a", "F64", "2305843009213693952", "0,0") "}", 0, -1, "a.shape[0]: expected an integer"},
        {"{" ENTRY("a", "U8", "0,4294967296,4294967296", "0,0") "}", 0, -1, "overflows"},
        {"{" ENTRY("a", "F32", "1", "0,5") "}", 4, -1,
         "a.data_offsets[1]: expected an integer in [0, 4], got 5"},
        {"{" ENTRY("a", "F32", "1", "4,0") "}", 4, -1,
         "a.data_offsets[1]: expected an integer in [4, 4], got 0"},
        {"{" ENTRY("a", "F32", "1", "0") "}", 4, -1, "a.data_offsets: expected [begin, end], got 1"},
        {"{" ENTRY("a", "F32", "1", "0,4,8") "}", 4, -1, "got 3 numbers"},
        {"{" ENTRY("a", "F32", "2", "0,4") "}", 4, -1,
         "a: data_offsets span 4 bytes, shape and dtype need 8"},
        {"{" ENTRY("a", "U8", "2", "0,2") "," ENTRY("b", "U8", "2", "1,3") "}", 3, -1,
         "b: data begins at offset 1, overlapping"},
        {"{" ENTRY("a", "U8", "2", "0,2") "," ENTRY("b", "U8", "1", "3,4") "}", 4, -1,
         "b: data begins at offset 3, after a hole"},
        {"{" ENTRY("a", "U8", "2", "1,3") "}", 3, -1, "after a hole"},
        {"{" ENTRY("a", "U8", "2", "0,2") "," ENTRY("b", "U8", "2", "0,2") "}", 2, -1, "overlapping"},
        {"{" ENTRY("a", "U8", "2", "0,2") "," ENTRY("a", "U8", "1", "2,3") "}", 3, -1, "duplicate key 'a'"},
        {"{" ENTRY("a", "U8", "2", "0,2") "}", 5, -1,
         "the tensors end at offset 2 of the data, the file at 5"},
        {"{\"__metadata__\":1}", 0, -1, "expected an object of strings"},
        {"{\"__metadata__\":{\"a\":1}}", 0, -1, "__metadata__.a: expected a string, got 1"},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        expect_message(parse_header(cases[i].header, cases[i].size, cases[i].length), TP_EFORMAT,
                       cases[i].part);
    cr_expect_eq(tpi_alloc_live(), 0);
}

Test(safetensors, refuses_every_truncation) {
    char buffer[512];
    size_t size =
        make_file(buffer, "{" ENTRY("a", "F32", "2", "0,8") "," ENTRY("b", "U8", "3", "8,11") "}", 11, -1);
    for (size_t length = 0; length < size; length++) {
        tpi_safetensors *st;
        char *copy = malloc(length ? length : 1);
        cr_assert(copy);
        memcpy(copy, buffer, length);
        cr_expect_eq(tpi_safetensors_parse("t", copy, length, &st), TP_EFORMAT, "length %zu", length);
        free(copy);
    }
}

Test(safetensors, refuses_a_million_brackets) {
    size_t million = 1000000;
    char *file = malloc(million + 8);
    uint64_t length = million;
    tpi_safetensors *st;
    cr_assert(file);
    memcpy(file, &length, 8);
    for (size_t i = 0; i < million; i++) file[8 + i] = i % 5 == 0 ? '{' : "{\"a\":"[i % 5];
    expect_message(tpi_safetensors_parse("t", file, million + 8, &st), TP_EFORMAT, "nested too deep");
    free(file);
}

/* --- Files --- */

TestSuite(safetensors_file, .init = make_directory, .fini = remove_directory);

static const float floats[6] = {1, -2, 3.5f, 4, 5, 6};
static const tpi_st_tensor three[] = {
    {.name = "odd", .dtype = TPI_ST_U8, .rank = 1, .shape = {3}, .data = "abc"},
    {.name = "matrix", .dtype = TPI_ST_F32, .rank = 2, .shape = {2, 3}, .data = floats},
    {.name = "none", .dtype = TPI_ST_BF16, .rank = 2, .shape = {0, 4}},
    {.name = "scalar", .dtype = TPI_ST_I64, .rank = 0, .data = "\1\0\0\0\0\0\0\0"},
};
static const tpi_st_metadata pt[] = {{"format", "pt"}, {"note", "caf\xc3\xa9 \"x\""}};

static tp_status write_and_read(void) {
    tpi_safetensors *st;
    TPI_TRY(tpi_safetensors_write(in_directory("w.safetensors"), three, COUNT(three), pt, COUNT(pt)));
    TPI_TRY(tpi_safetensors_open(in_directory("w.safetensors"), &st));
    tp_status status = TP_OK;
    cr_expect_eq(tpi_safetensors_count(st), COUNT(three));
    for (size_t i = 0; i < COUNT(three) && status == TP_OK; i++) {
        const tpi_st_tensor *t;
        status = tpi_safetensors_get(st, three[i].name, &t);
        if (status != TP_OK) break;
        cr_expect(t->dtype == three[i].dtype && t->rank == three[i].rank);
        cr_expect_arr_eq(t->shape, three[i].shape, sizeof t->shape);
        cr_expect(t->bytes == 0 || memcmp(t->data, three[i].data, t->bytes) == 0, "%s", t->name);
        cr_expect_eq((uintptr_t)t->data % tpi_st_dtype_size(t->dtype), 0, "%s is not aligned", t->name);
    }
    const char *note = tpi_safetensors_metadata(st, "note");
    cr_expect_str_eq(note, "caf\xc3\xa9 \"x\"");
    cr_expect_null(tpi_safetensors_metadata(st, "other"));
    tpi_safetensors_release(st);
    return status;
}

Test(safetensors_file, reads_back_what_it_wrote) {
    cr_expect_eq(write_and_read(), TP_OK, "%s", tp_error_message());
    cr_expect_eq(entries(directory), 1);
    tpi_safetensors *st;
    const tpi_st_tensor *none;
    cr_assert_eq(tpi_safetensors_open(in_directory("w.safetensors"), &st), TP_OK);
    expect_message(tpi_safetensors_get(st, "Odd", &none), TP_EFORMAT,
                   "w.safetensors: tensor 'Odd' is missing");
    tpi_safetensors *same = tpi_safetensors_retain(st);
    tpi_safetensors_release(st);
    cr_expect_eq(tpi_safetensors_at(same, 0)->bytes, 8);
    tpi_safetensors_release(same);
    cr_expect_eq(tpi_alloc_live(), 0);
}

Test(safetensors_file, every_allocation_may_fail) {
    sweep(write_and_read);
    cr_expect_eq(entries(directory), 1, "temporary files are left");
}

static tp_status by_bytes(void *user, size_t index, tpi_st_sink *sink) {
    size_t bytes = *(const size_t *)user;
    cr_expect_eq(index, 0);
    for (size_t i = 0; i < bytes; i++) TPI_TRY(tpi_st_sink_write(sink, &"abc"[i % 3], 1));
    return TP_OK;
}

Test(safetensors_file, refuses_to_write_what_it_could_not_read) {
    const char *path = in_directory("bad.safetensors");
    static const tpi_st_tensor twice[] = {{.name = "a", .rank = 1, .shape = {1}, .data = "x"},
                                          {.name = "a", .rank = 1, .shape = {1}, .data = "x"}};
    static const tpi_st_tensor huge = {.name = "a", .rank = 2, .shape = {INT64_MAX, 2}};
    static const tpi_st_tensor bytes = {.name = "\xff"}, reserved = {.name = "__metadata__"};
    static const tpi_st_metadata same[] = {{"k", "1"}, {"k", "2"}};
    size_t wrong;
    expect_message(tpi_safetensors_write(path, twice, 2, NULL, 0), TP_EINVAL, "duplicate key 'a'");
    expect_message(tpi_safetensors_write(path, twice, 1, same, 2), TP_EINVAL, "duplicate key 'k'");
    expect_message(tpi_safetensors_write(path, &huge, 1, NULL, 0), TP_EINVAL, "its shape or dtype");
    expect_message(tpi_safetensors_write(path, &reserved, 1, NULL, 0), TP_EINVAL,
                   "cannot be a tensor's name");
    expect_message(tpi_safetensors_write(path, &bytes, 1, NULL, 0), TP_EFORMAT, "not UTF-8");
    wrong = 2;
    expect_message(tpi_safetensors_write_from(path, three, 1, NULL, 0, by_bytes, &wrong), TP_EINVAL,
                   "left 1 of 3 bytes out");
    wrong = 4;
    expect_message(tpi_safetensors_write_from(path, three, 1, NULL, 0, by_bytes, &wrong), TP_EINVAL,
                   "more bytes");
    cr_expect_eq(entries(directory), 0);
    wrong = 3;
    cr_expect_eq(tpi_safetensors_write_from(path, three, 1, NULL, 0, by_bytes, &wrong), TP_OK);
    expect_message(tpi_safetensors_write("/dev/full", three, COUNT(three), NULL, 0), TP_EIO, "No space left");
    expect_message(tpi_safetensors_write(in_directory("no/f"), three, 1, NULL, 0), TP_EIO, "No such file");
    cr_expect_eq(tpi_alloc_live(), 0);
}

static void put_index(const char *text) {
    put_file(in_directory("model.safetensors.index.json"), text, strlen(text));
}

static tp_status open_model(void) {
    tpi_safetensors *st;
    tp_status status = tpi_safetensors_open(directory, &st);
    if (status == TP_OK) {
        cr_expect_eq(tpi_safetensors_count(st), 4);
        cr_expect(strstr(tpi_safetensors_find(st, "scalar")->file, "/b.st"));
    }
    tpi_safetensors_release(st);
    return status;
}

Test(safetensors_file, opens_a_model_in_shards) {
    expect_message(open_model(), TP_EIO, "neither model.safetensors nor");
    cr_assert_eq(tpi_safetensors_write(in_directory("a.st"), three, 2, pt, 1), TP_OK);
    cr_assert_eq(tpi_safetensors_write(in_directory("b.st"), three + 2, 2, pt, 1), TP_OK);
    cr_assert_eq(tpi_safetensors_write(in_directory("c.st"), three, 1, pt, 1), TP_OK);
    static const struct {
        const char *index;
        tp_status status;
        const char *part;
    } cases[] = {
        {"{\"weight_map\": {\"odd\": \"a.st\", \"none\": \"c.st\"}}", TP_EFORMAT, "tensor 'odd' is also in"},
        {"{\"weight_map\": {\"odd\": \"a.st\", \"scalar\": \"a.st\"}}", TP_EFORMAT,
         "weight_map.scalar: the tensor is not in 'a.st'"},
        {"{\"weight_map\": {\"odd\": \"b.st\", \"matrix\": \"a.st\"}}", TP_EFORMAT,
         "weight_map.odd: the tensor is not in 'b.st'"},
        {"{\"weight_map\": {\"odd\": \"../a.st\"}}", TP_EFORMAT, "'../a.st' is not the name of a file"},
        {"{\"weight_map\": {\"odd\": \"/dev/zero\"}}", TP_EFORMAT, "not the name of a file"},
        {"{\"weight_map\": {\"odd\": \"..\"}}", TP_EFORMAT, "not the name of a file"},
        {"{\"weight_map\": {\"odd\": \"\"}}", TP_EFORMAT, "not the name of a file"},
        {"{\"weight_map\": {\"odd\": 1}}", TP_EFORMAT, "weight_map.odd: expected a string"},
        {"{\"weight_map\": {}}", TP_EFORMAT, "names no tensor"},
        {"{}", TP_EFORMAT, "'weight_map' is missing"},
        {"{\"weight_map\": {\"odd\": \"none.st\"}}", TP_EIO, "none.st': No such file"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        put_index(cases[i].index);
        expect_message(open_model(), cases[i].status, cases[i].part);
    }
    put_index("{\"metadata\": {\"total_size\": 35}, \"weight_map\": {\"odd\": \"a.st\", \"matrix\": \"a.st\","
              " \"scalar\": \"b.st\", \"none\": \"b.st\"}}");
    sweep(open_model);
    cr_expect_eq(tpi_alloc_live(), 0);
}
